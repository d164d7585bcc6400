// Text to tokens and back: bytes, or the pieces of a tokenizer.model where SentencePiece was found.
#pragma once

#include "error.hpp"
#include "language_model.hpp"

#ifdef LLAMA_WITH_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace llama {

class tokenizer {
 public:
  virtual ~tokenizer() = default;
  virtual std::vector<token> encode(const std::string& text) const = 0;
  /// What a token adds to the text.
  virtual std::string decode(token piece) const = 0;

  std::string decode(const std::vector<token>& pieces) const {
    std::string text;
    for (const token piece : pieces) text += decode(piece);
    return text;
  }
};

/// Token b is the byte b; others, BOS say, have no text.
class byte_tokenizer final : public tokenizer {
 public:
  using tokenizer::decode;
  std::vector<token> encode(const std::string& text) const override {
    std::vector<token> tokens;
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  std::string decode(token piece) const override {
    return piece < 256 ? std::string(1, static_cast<char>(piece)) : std::string();
  }
};

#ifdef LLAMA_WITH_SENTENCEPIECE
class sentencepiece_tokenizer final : public tokenizer {
 public:
  using tokenizer::decode;
  explicit sentencepiece_tokenizer(const std::string& path) {
    const auto status = processor_.Load(path);
    if (!status.ok()) fail("%s: %s", path.c_str(), status.ToString().c_str());
  }
  std::vector<token> encode(const std::string& text) const override { return processor_.EncodeAsIds(text); }
  std::string decode(token piece) const override {
    if (piece < 0 || piece >= processor_.GetPieceSize() || processor_.IsControl(piece)) return {};
    std::string text = processor_.IdToPiece(piece);
    if (processor_.IsByte(piece)) return std::string(1, static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16)));
    for (std::size_t at; (at = text.find("\u2581")) != std::string::npos;) text.replace(at, 3, " ");
    return text;
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};
#endif

/// Errors: a model that is neither of bytes nor has a tokenizer.model: it can be given token ids only.
inline std::unique_ptr<tokenizer> make_tokenizer(const std::string& folder, const language_model& model) {
  const std::string path = folder + "/tokenizer.model";
  if (std::filesystem::exists(path)) {
#ifdef LLAMA_WITH_SENTENCEPIECE
    return std::make_unique<sentencepiece_tokenizer>(path);
#else
    fail("%s: this program was built without SentencePiece: give token ids, or install libsentencepiece-dev",
         path.c_str());
#endif
  }
  if (model.shape().vocabulary < 256 || model.shape().vocabulary > 260)
    fail("%s: no tokenizer.model, and %lld tokens are not bytes: give token ids", folder.c_str(),
         static_cast<long long>(model.shape().vocabulary));
  return std::make_unique<byte_tokenizer>();
}

}  // namespace llama
