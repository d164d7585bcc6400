// Models of a few numbers: what a config asks for is computed with the tensors that it names, and what does not fit is
// refused.
#include "load_model.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "tiny_model.hpp"

namespace {

using llama::element;
using tiny::contains;
using tiny::json;
using tiny::logits;

// The tensors of a model beside a config that was changed after them.
std::string said_of(tiny::model made, const json& changes) {
  made.config.update(changes);
  return tiny::refusal([&] { logits(made); });
}
std::string llama_said(const json& changes) { return said_of(tiny::llama_model(), changes); }
std::string mpt_said(const json& changes) { return said_of(tiny::mpt_model(), changes); }
std::string mpt_attention_said(const char* key, const json& value) {
  return mpt_said({{"attn_config", {{key, value}}}});
}

void set_all(tiny::tensor& tensor, float number) { std::fill(tensor.numbers.begin(), tensor.numbers.end(), number); }

tiny::model rounded(tiny::model made, element type) {
  for (tiny::tensor& tensor : made.tensors)
    for (float& number : tensor.numbers)
      number =
          type == element::f16 ? static_cast<float>(Eigen::half(number)) : static_cast<float>(Eigen::bfloat16(number));
  return made;
}

std::vector<tiny::model> all_models() {
  return {tiny::llama_model(),
          tiny::llama_model({{"model_type", "mistral"}, {"head_dim", 6}, {"num_hidden_layers", 2}}),
          tiny::llama_model({{"model_type", "qwen2"}, {"tie_word_embeddings", true}}),
          tiny::llama_model({{"attention_bias", true}, {"mlp_bias", true}, {"num_key_value_heads", 2}}),
          tiny::mpt_model(),
          tiny::mpt_model({{"n_layers", 2}})};
}

TEST(LoadModel, ModelsComputeFiniteLogits) {
  for (const tiny::model& made : all_models()) {
    const auto computed = logits(made);
    ASSERT_EQ(computed.size(), 8) << made.config;
    EXPECT_TRUE(computed.allFinite()) << made.config;
    EXPECT_GT(computed.maxCoeff() - computed.minCoeff(), 0.01f) << made.config;
  }
}

TEST(LoadModel, EachElementAtAnyByte) {
  for (const tiny::model& made : all_models())
    for (std::size_t gap = 0; gap < 4; ++gap) {
      EXPECT_EQ(logits(made, element::f32, gap), logits(made)) << made.config << gap;
      for (const element type : {element::f16, element::bf16})
        EXPECT_EQ(logits(made, type, gap), logits(rounded(made, type))) << made.config << gap;
    }
}

TEST(LoadModel, EveryTensorIsNeededAndHasOneShape) {
  for (const tiny::model& made : all_models())
    for (std::size_t i = 0; i < made.tensors.size(); ++i) {
      const std::string& name = made.tensors[i].name;
      tiny::model other = made;
      other.tensors.erase(other.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      EXPECT_EQ(said_of(other, json::object()), "tensor \"" + name + "\" is missing");

      other = made;
      other.tensors[i].shape.push_back(1);
      EXPECT_PRED2(contains, said_of(other, json::object()), "tensor \"" + name + "\": expected the shape [");
    }
}

TEST(LoadModel, EveryTensorMatters) {
  for (const tiny::model& made : all_models()) {
    const auto before = logits(made);
    for (std::size_t i = 0; i < made.tensors.size(); ++i) {
      const std::string& name = made.tensors[i].name;
      if (contains(name, "k_proj.bias")) continue;  // of next to no weight
      tiny::model other = made;
      for (float& number : other.tensors[i].numbers) number = 1.5f * number + 0.25f;
      EXPECT_GT((logits(other) - before).cwiseAbs().maxCoeff(), 1e-4f) << name;
    }
  }
}

TEST(LoadModel, TiedOutput) {
  const tiny::model tied = tiny::llama_model({{"tie_word_embeddings", true}});
  tiny::model untied = tiny::llama_model();
  std::vector<float>& output = untied.at("lm_head.weight").numbers;
  EXPECT_NE(logits(untied), logits(tied));
  output = untied.at("model.embed_tokens.weight").numbers;
  EXPECT_EQ(logits(untied), logits(tied));
  for (float& number : output) number *= 2;
  EXPECT_EQ(logits(untied), 2 * logits(tied));

  // Without a word of it, it is not tied; an lm_head that is there all the same is left alone.
  untied.config.erase("tie_word_embeddings");
  EXPECT_EQ(logits(untied), 2 * logits(tied));
  untied.config["tie_word_embeddings"] = true;
  EXPECT_EQ(logits(untied), logits(tied));
}

TEST(LoadModel, BiasesOfZeroAreNone) {
  const auto none = logits(tiny::llama_model());
  for (const json& changes : {json{{"attention_bias", true}}, json{{"mlp_bias", true}}, json{{"model_type", "qwen2"}},
                              json{{"attention_bias", true}, {"mlp_bias", true}}}) {
    tiny::model made = tiny::llama_model(changes);
    EXPECT_NE(logits(made), none) << changes;
    for (tiny::tensor& tensor : made.tensors)
      if (contains(tensor.name, ".bias")) set_all(tensor, 0);
    EXPECT_EQ(logits(made), none) << changes;
  }
}

TEST(LoadModel, Qwen2HasBiasesOfAllButTheAttentionsOutput) {
  tiny::model biased = tiny::llama_model({{"attention_bias", true}});
  set_all(biased.at("model.layers.0.self_attn.o_proj.bias"), 0);
  EXPECT_EQ(logits(tiny::llama_model({{"model_type", "qwen2"}})), logits(biased));
}

// The widths of its tensors, by themselves, would fit more than one such model.
TEST(LoadModel, KeyValueHeadsMayBeLeftOut) {
  tiny::model made = tiny::llama_model({{"num_key_value_heads", 2}});
  const auto before = logits(made);
  made.config.erase("num_key_value_heads");
  EXPECT_EQ(logits(made), before);
  made.config["head_dim"] = 4;
  EXPECT_EQ(logits(made), before);
}

TEST(LoadModel, ShapeIsThatOfTheConfig) {
  const tiny::model made = tiny::llama_model({{"bos_token_id", 3}, {"max_position_embeddings", 99}, {"head_dim", 6}});
  const std::string config = made.config.dump(), file = tiny::safetensors(made.tensors);
  const llama::model_shape shape = tiny::loaded(config, file)->shape();
  EXPECT_EQ(shape.vocabulary, 8);
  EXPECT_EQ(shape.width, 8);
  EXPECT_EQ(shape.layers, 1);
  EXPECT_EQ(shape.heads.heads, 2);
  EXPECT_EQ(shape.heads.kv_heads, 1);
  EXPECT_EQ(shape.heads.head_dim, 6);
  EXPECT_EQ(shape.training_length, 99);
  EXPECT_EQ(shape.bos, 3);
}

TEST(LoadModel, ScaleOfMptIsThatOfItsConfig) {
  tiny::model made = tiny::mpt_model();
  const auto before = logits(made);
  made.config["attn_config"]["softmax_scale"] = 0.5;  // 1 / sqrt(4)
  EXPECT_EQ(logits(made), before);
  made.config["attn_config"]["softmax_scale"] = 0.75;
  EXPECT_NE(logits(made), before);
  made.config["attn_config"]["softmax_scale"] = nullptr;
  made.config["attn_config"]["alibi_bias_max"] = 4;
  EXPECT_NE(logits(made), before);
}

TEST(LoadModel, Types) {
  for (const char* type : {"gpt2", "Llama", ""})
    EXPECT_EQ(llama_said({{"model_type", type}}),
              "config.json: expected a model_type llama, mistral, qwen2 or mpt, got \"" + std::string(type) + "\"");
  EXPECT_PRED2(contains, llama_said({{"model_type", nullptr}}), "got \"\"");
  EXPECT_PRED2(contains, llama_said({{"model_type", 7}}), "expected \"model_type\" to be a string");
}

TEST(LoadModel, SizesOutOfRange) {
  const std::int64_t two_to_40 = std::int64_t{1} << 40;
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "max_position_embeddings"})
    for (const json& number : {json(0), json(-1), json(two_to_40), json(~0ull), json(INT64_MIN)})
      EXPECT_PRED2(contains, llama_said({{key, number}}),
                   "config.json: expected \"" + std::string(key) + "\" to be from 1")
          << number;
  for (const char* key : {"vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len"})
    for (const json& number : {json(0), json(-1), json(two_to_40), json(~0ull), json(INT64_MIN)})
      EXPECT_PRED2(contains, mpt_said({{key, number}}),
                   "config.json: expected \"" + std::string(key) + "\" to be from 1")
          << number;
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    EXPECT_PRED2(contains, llama_said({{key, nullptr}}), std::string("\"") + key + "\" is missing");
    for (const json& value : {json("8"), json(8.0), json(true), json::array({8})})
      EXPECT_PRED2(contains, llama_said({{key, value}}), std::string("\"") + key + "\" to be an integer") << value;
  }
  EXPECT_PRED2(contains, llama_said({{"num_hidden_layers", 4097}}), "to be from 1 to 4096");
  EXPECT_PRED2(contains, llama_said({{"head_dim", 513}}), "\"head_dim\" to be from 1 to 512");
}

TEST(LoadModel, HeadsThatDoNotDivide) {
  EXPECT_PRED2(contains, llama_said({{"num_attention_heads", 3}, {"num_key_value_heads", 2}, {"head_dim", 4}}),
               "multiple of num_key_value_heads");
  EXPECT_PRED2(contains, llama_said({{"num_key_value_heads", 3}}), "\"num_key_value_heads\" to be from 1 to 2");
  EXPECT_PRED2(contains, llama_said({{"num_attention_heads", 16}}), "hidden_size to be 1 to 512 times");
  EXPECT_PRED2(contains, llama_said({{"hidden_size", 1 << 20}, {"num_attention_heads", 1}}),
               "hidden_size to be 1 to 512 times");
  EXPECT_PRED2(contains, llama_said({{"head_dim", 3}}), "even rotary_dim");
  EXPECT_PRED2(contains, mpt_said({{"n_heads", 5}}), "expected d_model to be a multiple of n_heads");
  EXPECT_PRED2(contains, mpt_said({{"n_heads", 24}}), "expected d_model to be a multiple of n_heads");
  EXPECT_PRED2(contains, mpt_said({{"d_model", 3 << 10}}), "no more than 512 times that");
}

// Sizes within their ranges, and tensors that are not so large.
TEST(LoadModel, SizesThatTheTensorsDoNotHave) {
  EXPECT_PRED2(contains, llama_said({{"vocab_size", 1 << 24}}), "expected the shape [16777216, 8], got [8, 8]");
  EXPECT_PRED2(contains, llama_said({{"intermediate_size", 1 << 24}}), "expected the shape [16777216, 8], got [12, 8]");
  EXPECT_PRED2(contains, llama_said({{"hidden_size", 1 << 20}, {"head_dim", 4}}), "expected the shape [8, 1048576]");
  EXPECT_PRED2(contains, llama_said({{"num_hidden_layers", 4096}}), "tensor \"model.layers.1.");
  EXPECT_PRED2(contains, llama_said({{"num_attention_heads", 1 << 16}, {"head_dim", 512}}),
               "[33554432, 8], got [8, 8]");
  EXPECT_PRED2(contains, mpt_said({{"d_model", 1 << 20}, {"n_heads", 1 << 16}}), "[8, 1048576], got [8, 12]");
}

TEST(LoadModel, BosIsAToken) {
  for (const json& bos : {json(-1), json(8), json(INT64_MAX)}) {
    EXPECT_PRED2(contains, llama_said({{"bos_token_id", bos}}), "\"bos_token_id\" to be from 0 to 7");
    EXPECT_PRED2(contains, mpt_said({{"bos_token_id", bos}}), "\"bos_token_id\" to be from 0 to 7");
  }
  EXPECT_PRED2(contains, llama_said({{"bos_token_id", {1}}}), "to be an integer");
}

TEST(LoadModel, TokensAreThoseOfTheVocabulary) {
  const tiny::model made = tiny::llama_model();
  const std::string config = made.config.dump(), file = tiny::safetensors(made.tensors);
  const tiny::loaded loaded(config, file);
  for (const llama::token token : {-1, 8, INT32_MAX, INT32_MIN})
    EXPECT_EQ(tiny::refusal([&] {
                llama::stream(*loaded, {}, 4).next_logits({0, token});
              }),
              "expected tokens from 0 to 7, got " + std::to_string(token));
}

TEST(LoadModel, SettingsOfOtherLlamas) {
  EXPECT_EQ(llama_said({{"hidden_act", nullptr}}), "accepted");
  EXPECT_PRED2(contains, llama_said({{"hidden_act", "gelu"}}), "\"hidden_act\" is \"gelu\", and only \"silu\"");
  EXPECT_PRED2(contains, llama_said({{"rms_norm_eps", "0"}}), "\"rms_norm_eps\" to be a finite number");
  EXPECT_PRED2(contains, llama_said({{"rms_norm_eps", -1}}), "\"rms_norm_eps\" to be 0 or more, got -1");
  for (const char* key : {"attention_bias", "mlp_bias", "tie_word_embeddings"})
    EXPECT_PRED2(contains, llama_said({{key, 1}}), "to be true or false") << key;
  EXPECT_PRED2(contains, llama_said({{"rope_scaling", {{"type", "dynamic"}}}}), "\"dynamic\" is not supported");
}

TEST(LoadModel, SettingsOfOtherMpts) {
  EXPECT_EQ(mpt_said({{"attn_config", nullptr}, {"expansion_ratio", nullptr}, {"no_bias", nullptr}}), "accepted");
  EXPECT_EQ(mpt_said({{"tie_word_embeddings", true}}), "accepted");
  EXPECT_PRED2(contains, mpt_said({{"expansion_ratio", 2}}), "\"expansion_ratio\" is 2, and only 4 is supported");
  EXPECT_PRED2(contains, mpt_said({{"no_bias", false}}), "\"no_bias\" is false, and only true");
  EXPECT_PRED2(contains, mpt_said({{"tie_word_embeddings", false}}), "\"tie_word_embeddings\" is false");
  EXPECT_PRED2(contains, mpt_said({{"logit_scale", "inv_sqrt_d_model"}}), "\"logit_scale\" is \"inv_sqrt_d_model\"");
  EXPECT_PRED2(contains, mpt_said({{"layer_norm_epsilon", {1}}}), "\"layer_norm_epsilon\" to be a finite number");
  EXPECT_PRED2(contains, mpt_said({{"layer_norm_epsilon", -1}}), "\"layer_norm_epsilon\" to be 0 or more, got -1");
  EXPECT_PRED2(contains, mpt_said({{"attn_config", true}}), "\"attn_config\" to be an object");
  EXPECT_PRED2(contains, mpt_attention_said("alibi", false), "attn_config: \"alibi\" is false, and only true");
  EXPECT_PRED2(contains, mpt_attention_said("attn_type", "multiquery_attention"), "only \"multihead_attention\"");
  EXPECT_PRED2(contains, mpt_attention_said("clip_qkv", 8), "\"clip_qkv\" is 8, and only null");
  EXPECT_PRED2(contains, mpt_attention_said("prefix_lm", true), "\"prefix_lm\" is true");
  EXPECT_PRED2(contains, mpt_attention_said("qk_ln", true), "\"qk_ln\" is true");
  EXPECT_PRED2(contains, mpt_attention_said("softmax_scale", "x"), "\"softmax_scale\" to be a finite number");
  EXPECT_PRED2(contains, mpt_attention_said("softmax_scale", -1), "\"softmax_scale\" to be 0 or more");
  EXPECT_PRED2(contains, mpt_attention_said("alibi_bias_max", -8),
               "attn_config: expected \"alibi_bias_max\" to be 0 or more");
}

// A training length that no memory holds: caches have as many tokens as come.
TEST(LoadModel, CachesAreNoLongerThanTheText) {
  for (tiny::model made : all_models()) {
    const char* const key = made.config["model_type"] == "mpt" ? "max_seq_len" : "max_position_embeddings";
    const auto before = logits(made);
    made.config[key] = 1 << 28;
    EXPECT_EQ(logits(made), before);
    const std::string config = made.config.dump(), file = tiny::safetensors(made.tensors);
    const tiny::loaded loaded(config, file);
    for (const auto& [name, attention] : llama::policies) {
      llama::attention_settings settings;
      settings.attention = attention;
      EXPECT_LT(llama::stream(*loaded, settings, 4).bytes(), 1 << 20) << name;
    }
  }
}

TEST(LoadModel, Folders) {
  for (const tiny::model& made : all_models()) {
    const tiny::temporary_folder folder;
    folder.add("config.json", made.config.dump());
    folder.add("model.safetensors", tiny::safetensors(made.tensors));
    EXPECT_EQ(logits(llama::loaded_model(folder.path()).model()), logits(made));
  }
}

TEST(LoadModel, ShardedFolders) {
  for (const tiny::model& made : all_models()) {
    const tiny::temporary_folder folder;
    folder.add("config.json", made.config.dump());
    folder.add("model.safetensors", "an index comes first");
    std::vector<std::vector<tiny::tensor>> shards(3);
    json map;
    for (std::size_t i = 0; i < made.tensors.size(); ++i) {
      shards[i % 3].push_back(made.tensors[i]);
      map[made.tensors[i].name] = std::to_string(i % 3) + ".safetensors";
    }
    for (std::size_t i = 0; i < 3; ++i)
      folder.add(std::to_string(i) + ".safetensors", tiny::safetensors(shards[i], element::f32, i));
    folder.add("model.safetensors.index.json", json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
    EXPECT_EQ(logits(llama::loaded_model(folder.path()).model()), logits(made));
  }
}

TEST(LoadModel, FoldersThatAreNotComplete) {
  const tiny::temporary_folder folder;
  const auto said = [&] { return tiny::refusal([&] { llama::loaded_model{folder.path()}; }); };
  EXPECT_PRED2(contains, said(), "/config.json: No such file or directory");
  folder.add("config.json", "");
  EXPECT_PRED2(contains, said(), "/config.json: not JSON");
  folder.add("config.json", std::string(100000, '['));
  EXPECT_PRED2(contains, said(), "nested deeper");
  folder.add("config.json", "{}");
  EXPECT_PRED2(contains, said(), "/model.safetensors: No such file or directory");
  folder.add("model.safetensors", tiny::with_length("{}"));
  EXPECT_PRED2(contains, said(), "config.json: expected a model_type");
  folder.add("config.json", tiny::llama_model().config.dump());
  EXPECT_PRED2(contains, said(), "is missing");
}

}  // namespace
