// expected: lambda_attention: the lse of a partial_result is float or double
#include <lambda_attention/partial.hpp>

lambda_attention::partial_result<float, lambda_attention::half> result;
