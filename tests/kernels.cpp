// The kernels of all test programs.
#include <lambda_attention/kernels_here.hpp>
