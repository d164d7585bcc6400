// JSON from files that nobody vouches for: parsed with a limit on its depth, and read with a limit on every number.
#pragma once

#include "error.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

namespace llama {

using json = nlohmann::json;

/// An object. Errors: anything else; nesting deeper than any file of a model has. `name` says in errors what `text` is.
inline json parse_object(std::string_view text, const std::string& name) {
  std::set<std::string> members;
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > 16) fail("%s: JSON nested deeper than 16 levels", name.c_str());
    if (depth == 1 && event == json::parse_event_t::key && !members.insert(value.get<std::string>()).second)
      fail("%s: \"%s\" is there twice", name.c_str(), value.get<std::string>().c_str());
    return true;
  };
  try {
    json parsed = json::parse(text.begin(), text.end(), check);
    if (parsed.is_object()) return parsed;
  } catch (const json::exception& problem) {
    fail("%s: not JSON: %s", name.c_str(), problem.what());
  }
  fail("%s: expected a JSON object", name.c_str());
}

/// Reads the members of an object; a member that is null counts as absent.
class json_reader {
 public:
  json_reader(const json& object, std::string name) : object_(&object), name_(std::move(name)) {}

  bool has(const char* key) const {
    const auto found = object_->find(key);
    return found != object_->end() && !found->is_null();
  }
  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const {
    if (!at(key).is_number_integer()) fail("%s: expected \"%s\" to be an integer", name_.c_str(), key);
    const bool too_large = at(key).is_number_unsigned() && at(key).get<std::uint64_t>() > INT64_MAX;
    const std::int64_t number = too_large ? INT64_MAX : at(key).get<std::int64_t>();
    if (number < least || number > most)
      fail("%s: expected \"%s\" to be from %lld to %lld, got %lld", name_.c_str(), key, static_cast<long long>(least),
           static_cast<long long>(most), static_cast<long long>(number));
    return number;
  }
  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most, std::int64_t otherwise) const {
    return has(key) ? integer(key, least, most) : otherwise;
  }
  double number(const char* key) const {
    const double number = at(key).is_number() ? at(key).get<double>() : NAN;
    if (!std::isfinite(number)) fail("%s: expected \"%s\" to be a finite number", name_.c_str(), key);
    return number;
  }
  double number(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  double non_negative(const char* key, double otherwise) const {
    const double result = number(key, otherwise);
    if (result < 0) fail("%s: expected \"%s\" to be 0 or more, got %g", name_.c_str(), key, result);
    return result;
  }
  std::string text(const char* key, const char* otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_string()) fail("%s: expected \"%s\" to be a string", name_.c_str(), key);
    return at(key).get<std::string>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!at(key).is_boolean()) fail("%s: expected \"%s\" to be true or false", name_.c_str(), key);
    return at(key).get<bool>();
  }
  /// An object within, empty where it is absent.
  json_reader object(const char* key) const {
    static const json empty = json::object();
    if (!has(key)) return {empty, name_};
    if (!at(key).is_object()) fail("%s: expected \"%s\" to be an object", name_.c_str(), key);
    return {at(key), name_ + ", " + key};
  }
  /// Refuses a setting that would make another model than this program computes.
  template <class Value>
  void expect(const char* key, const Value& value) const {
    if (has(key) && at(key) != json(value))
      fail("%s: \"%s\" is %s, and only %s is supported", name_.c_str(), key, at(key).dump().c_str(),
           json(value).dump().c_str());
  }

 private:
  const json& at(const char* key) const {
    if (!has(key)) fail("%s: \"%s\" is missing", name_.c_str(), key);
    return object_->at(key);
  }

  const json* object_;
  std::string name_;
};

}  // namespace llama
