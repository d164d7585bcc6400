// Everything but reference.hpp, eigen.hpp and the executors that need a library: include those where you use them.
#pragma once

#include <lambda_attention/attention.hpp>
#include <lambda_attention/config.hpp>
#include <lambda_attention/element.hpp>
#include <lambda_attention/executor.hpp>
#include <lambda_attention/isa.hpp>
#include <lambda_attention/key_run.hpp>
#include <lambda_attention/kv_cache.hpp>
#include <lambda_attention/lambda_shape.hpp>
#include <lambda_attention/options.hpp>
#include <lambda_attention/partial.hpp>
#include <lambda_attention/position.hpp>
#include <lambda_attention/position/alibi.hpp>
#include <lambda_attention/position/none.hpp>
#include <lambda_attention/position/rope.hpp>
#include <lambda_attention/position/rope_scaling.hpp>
#include <lambda_attention/position/t5_bias.hpp>
#include <lambda_attention/retrieval.hpp>
#include <lambda_attention/storage.hpp>
#include <lambda_attention/storage/bf16.hpp>
#include <lambda_attention/storage/f16.hpp>
#include <lambda_attention/storage/f32.hpp>
#include <lambda_attention/storage/f64.hpp>
#include <lambda_attention/storage/int8.hpp>
#include <lambda_attention/tensor_view.hpp>
#include <lambda_attention/workspace.hpp>
