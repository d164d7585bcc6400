// A model of either architecture, from a folder as transformers writes it: config.json and safetensors.
#pragma once

#include "error.hpp"
#include "json.hpp"
#include "language_model.hpp"
#include "llama_model.hpp"
#include "mapped_file.hpp"
#include "mpt_model.hpp"
#include "weights.hpp"

#include <memory>
#include <string>

namespace llama {

/// Of what `config` and `source` say; the model views `source`, which is to outlive it.
inline std::unique_ptr<language_model> make_model(const json_reader& config, const weights& source) {
  const std::string type = config.text("model_type", "");
  if (type == "llama" || type == "mistral" || type == "qwen2") return std::make_unique<llama_model>(config, source);
  if (type == "mpt") return std::make_unique<mpt_model>(config, source);
  fail("config.json: expected a model_type llama, mistral, qwen2 or mpt, got \"%s\"", type.c_str());
}

/// A folder's model and the files that it reads while it computes.
class loaded_model {
 public:
  /// Errors: files that are missing, damaged, or do not fit one another. What is allocated is of the order of the
  /// files.
  explicit loaded_model(const std::string& folder)
      : config_(parse_object(mapped_file(folder + "/config.json").bytes(), folder + "/config.json")),
        weights_(folder),
        model_(make_model({config_, "config.json"}, weights_)) {}

  const language_model& model() const { return *model_; }

 private:
  json config_;
  weights weights_;
  std::unique_ptr<language_model> model_;
};

}  // namespace llama
