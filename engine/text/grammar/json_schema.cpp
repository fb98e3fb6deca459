#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/text/grammar/grammar.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

using Json = nlohmann::ordered_json;

// What every JSON text is made of. White space: none or one blank, or a line's end with its indentation, so that no
// model can go on with it for ever.
constexpr const char* kCommonRules = R"gbnf(
space ::= " "? | "\n" [ \t]{0,20}
boolean ::= "true" | "false"
null ::= "null"
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
character ::= [^"\\\x00-\x1f\x7f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
string ::= "\"" character* "\""
value ::= object | array | string | number | boolean | null
object ::= "{" space (string ":" space value ("," space string ":" space value)*)? space "}"
array ::= "[" space (value ("," space value)*)? space "]"
digits-2 ::= [0-9]{2}
date ::= [0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [1-2] [0-9] | "3" [0-1])
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{3})? ("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])
uuid ::= [0-9a-fA-F]{8} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{4} "-" [0-9a-fA-F]{12}
)gbnf";

constexpr std::string_view kDescriptions[] = {"title",     "description", "default",    "examples",   "$schema",
                                              "$id",       "$comment",    "$anchor",    "deprecated", "readOnly",
                                              "writeOnly", "$defs",       "definitions"};

std::string gbnf_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string repeat(int64_t least, int64_t most) {
  return most < 0 ? fmt::format("{{{},}}", least) : fmt::format("{{{},{}}}", least, most);
}

class Converter {
 public:
  explicit Converter(const Json& document) : document_(document) {}

  std::string run() {
    const std::string root = rule_for(document_, "#", 0);
    std::string out = fmt::format("root ::= {}\n", root);
    out += rules_;
    out += kCommonRules;
    return out;
  }

 private:
  [[noreturn]] static void fail(const std::string& place, std::string_view what) {
    throw InputError(fmt::format("json schema: {}: {}", printable(place, 200), what));
  }

  // A rule's name, or an expression that stands for itself.
  std::string rule_for(const Json& schema, const std::string& place, int depth) {
    if (depth > 64) fail(place, "nested too deeply");
    if (++schemas_ > 20000) fail(place, "too many schemas");
    if (schema.is_boolean()) {
      if (schema.get<bool>()) return "value";
      fail(place, "the schema false allows nothing");
    }
    if (!schema.is_object()) fail(place, "a schema is an object, true or false");
    const std::string body = expression(schema, place, depth);
    if (body.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos) return body;
    return add_rule(body);
  }

  std::string add_rule(const std::string& body) {
    const std::string name = fmt::format("r-{}", ++num_rules_);
    define(name, body);
    return name;
  }
  void define(const std::string& name, const std::string& body) {
    rules_ += fmt::format("{} ::= {}\n", name, body);
    if (rules_.size() > Grammar::kMostBytes) throw InputError("json schema: the grammar that it makes is too large");
  }

  // Throws unless every keyword is one of `known`, or describes only.
  static void check_keywords(const Json& schema, const std::string& place, const std::set<std::string_view>& known) {
    for (const auto& [key, value] : schema.items()) {
      if (known.contains(key) ||
          std::find(std::begin(kDescriptions), std::end(kDescriptions), key) != std::end(kDescriptions))
        continue;
      fail(place, fmt::format("\"{}\" is not supported here", printable(key)));
    }
  }

  static int64_t count_of(const Json& schema, const char* key, int64_t fallback, const std::string& place) {
    if (!schema.contains(key)) return fallback;
    const Json& value = schema[key];
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > 10000)
      fail(place, fmt::format("\"{}\" must be a whole number from 0 to 10000", key));
    return value.get<int64_t>();
  }

  std::string expression(const Json& schema, const std::string& place, int depth) {
    if (schema.contains("$ref")) {
      check_keywords(schema, place, {"$ref"});
      return reference(schema["$ref"], place, depth);
    }
    if (schema.contains("const")) {
      check_keywords(schema, place, {"const", "type"});
      return gbnf_string(schema["const"].dump());
    }
    if (schema.contains("enum")) {
      check_keywords(schema, place, {"enum", "type"});
      if (!schema["enum"].is_array() || schema["enum"].empty()) fail(place, "\"enum\" must be an array with a value");
      std::string out;
      for (const Json& value : schema["enum"]) out += (out.empty() ? "" : " | ") + gbnf_string(value.dump());
      return "(" + out + ")";
    }
    for (const char* key : {"anyOf", "oneOf"}) {
      if (!schema.contains(key)) continue;
      check_keywords(schema, place, {key});
      if (!schema[key].is_array() || schema[key].empty())
        fail(place, fmt::format("\"{}\" must be an array with a schema", key));
      std::string out;
      for (size_t i = 0; i < schema[key].size(); ++i)
        out += (i == 0 ? "" : " | ") + rule_for(schema[key][i], fmt::format("{}/{}/{}", place, key, i), depth + 1);
      return "(" + out + ")";
    }
    if (schema.contains("allOf")) return all_of(schema, place, depth);
    const Json type = schema.contains("type") ? schema["type"] : guessed_type(schema);
    if (type.is_null()) {
      check_keywords(schema, place, {});
      return "value";
    }
    if (type.is_array()) {
      if (type.empty()) fail(place, "\"type\" has no name");
      std::string out;
      for (const Json& one : type) {
        Json single = schema;
        single["type"] = one;
        if (one == "null" || one == "boolean") single = Json{{"type", one}};
        out += (out.empty() ? "" : " | ") + of_type(single, one, place, depth, /*among_others=*/true);
      }
      return "(" + out + ")";
    }
    return of_type(schema, type, place, depth, false);
  }

  static Json guessed_type(const Json& schema) {
    for (const char* key : {"properties", "required", "additionalProperties"}) {
      if (schema.contains(key)) return "object";
    }
    for (const char* key : {"items", "prefixItems", "minItems", "maxItems"}) {
      if (schema.contains(key)) return "array";
    }
    for (const char* key : {"pattern", "minLength", "maxLength", "format"}) {
      if (schema.contains(key)) return "string";
    }
    return nullptr;
  }

  std::string of_type(const Json& schema, const Json& type, const std::string& place, int depth, bool among_others) {
    if (!type.is_string()) fail(place, "\"type\" must be a name or a list of names");
    const auto name = type.get<std::string>();
    static const std::map<std::string_view, std::set<std::string_view>> kKeywords = {
        {"object", {"properties", "required", "additionalProperties"}},
        {"array", {"items", "prefixItems", "minItems", "maxItems"}},
        {"string", {"pattern", "minLength", "maxLength", "format"}},
        {"integer", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
        {"number", {}},
        {"boolean", {}},
        {"null", {}}};
    const auto found = kKeywords.find(name);
    if (found == kKeywords.end()) fail(place, fmt::format("the type \"{}\" is not known", printable(name)));
    std::set<std::string_view> known = found->second;
    known.insert("type");
    if (among_others) {
      for (const auto& [other, keywords] : kKeywords) known.insert(keywords.begin(), keywords.end());
    }
    check_keywords(schema, place, known);
    if (name == "object") return object(schema, place, depth);
    if (name == "array") return array(schema, place, depth);
    if (name == "string") return string(schema, place);
    if (name == "integer") return integer(schema, place);
    return name;
  }

  std::string reference(const Json& ref, const std::string& place, int depth) {
    if (!ref.is_string() || !ref.get<std::string>().starts_with("#"))
      fail(place, "\"$ref\" must begin with #: only this document can be referred to");
    const auto target = ref.get<std::string>();
    if (const auto known = references_.find(target); known != references_.end()) return known->second;
    const Json* schema = &document_;
    try {
      schema = &document_.at(Json::json_pointer(target.substr(1)));
    } catch (const Json::exception&) {
      fail(place, fmt::format("\"$ref\": there is no {}", printable(target)));
    }
    // The name first: what it refers to may refer to itself.
    const std::string name = fmt::format("ref-{}", ++num_rules_);
    references_[target] = name;
    const std::string body = rule_for(*schema, target, depth + 1);
    if (body == name) fail(place, "\"$ref\" refers to nothing but itself");
    define(name, body);
    return name;
  }

  // Schemas of objects are laid together; another kind must be the only one.
  std::string all_of(const Json& schema, const std::string& place, int depth) {
    const Json& parts = schema["allOf"];
    if (!parts.is_array() || parts.empty()) fail(place, "\"allOf\" must be an array with a schema");
    Json rest = schema;
    rest.erase("allOf");
    for (const std::string_view key : kDescriptions) rest.erase(std::string(key));
    if (parts.size() == 1 && rest.empty()) return rule_for(parts[0], place + "/allOf/0", depth + 1);
    Json whole = Json{{"type", "object"}, {"properties", Json::object()}, {"required", Json::array()}};
    std::vector<Json> all(parts.begin(), parts.end());
    all.push_back(rest);
    for (size_t i = 0; i < all.size(); ++i) {
      const std::string where = fmt::format("{}/allOf/{}", place, i);
      Json part = all[i];
      for (int n = 0; part.is_object() && part.contains("$ref"); ++n) {
        if (n > 16 || part.size() != 1 || !part["$ref"].is_string() ||
            !part["$ref"].get_ref<const std::string&>().starts_with('#'))
          fail(where, "this \"$ref\" is not supported in \"allOf\"");
        try {
          const Json target = document_.at(Json::json_pointer(part["$ref"].get<std::string>().substr(1)));
          part = target;
        } catch (const Json::exception&) {
          fail(where, "\"$ref\": there is no such schema");
        }
      }
      if (!part.is_object()) fail(where, "a schema of an object is needed in \"allOf\"");
      check_keywords(part, where, {"type", "properties", "required", "additionalProperties"});
      if (part.contains("type") && part["type"] != "object")
        fail(where, "\"allOf\" of more than one schema is supported for objects alone");
      if (part.contains("properties")) {
        for (const auto& [key, value] : part["properties"].items()) {
          if (whole["properties"].contains(key) && whole["properties"][key] != value)
            fail(where, fmt::format("the property \"{}\" has two schemas", printable(key)));
          whole["properties"][key] = value;
        }
      }
      if (part.contains("required")) {
        for (const Json& key : part["required"]) whole["required"].push_back(key);
      }
      if (part.contains("additionalProperties")) whole["additionalProperties"] = part["additionalProperties"];
    }
    return object(whole, place, depth);
  }

  std::string object(const Json& schema, const std::string& place, int depth) {
    const Json none = Json::object();
    const Json& properties = schema.contains("properties") ? schema["properties"] : none;
    if (!properties.is_object()) fail(place, "\"properties\" must be an object");
    std::set<std::string> required;
    std::vector<std::string> order;
    for (const auto& [key, value] : properties.items()) order.push_back(key);
    if (schema.contains("required")) {
      if (!schema["required"].is_array()) fail(place, "\"required\" must be an array of names");
      for (const Json& key : schema["required"]) {
        if (!key.is_string()) fail(place, "\"required\" must be an array of names");
        required.insert(key.get<std::string>());
        if (!properties.contains(key.get<std::string>()) &&
            std::find(order.begin(), order.end(), key.get<std::string>()) == order.end())
          order.push_back(key.get<std::string>());
      }
    }
    // Without a word about them, further members are not made where there are properties.
    std::string more;
    if (schema.contains("additionalProperties") ? schema["additionalProperties"] != false : order.empty()) {
      const Json any = true;
      const std::string value = rule_for(schema.contains("additionalProperties") ? schema["additionalProperties"] : any,
                                         place + "/additionalProperties", depth + 1);
      more = add_rule(fmt::format("{} \":\" space {}", other_key(order), value));
    }
    std::vector<std::string> members;
    std::vector<bool> is_required;
    for (const std::string& key : order) {
      const std::string value =
          properties.contains(key) ? rule_for(properties[key], place + "/properties/" + key, depth + 1) : "value";
      members.push_back(add_rule(fmt::format("{} \":\" space {}", gbnf_string(Json(key).dump()), value)));
      is_required.push_back(required.contains(key));
    }
    // rest[i]: members from i on, behind one that is there already; each but the first has a comma before it.
    std::string rest = more.empty() ? "\"\"" : fmt::format("(\",\" space {})*", more);
    std::string first;  // members from i on, none before them
    if (!more.empty()) first = fmt::format("{} {}", more, rest);
    bool may_be_empty = true;
    for (size_t i = members.size(); i-- > 0;) {
      const std::string rest_rule = add_rule(rest);
      const std::string with = fmt::format("{} {}", members[i], rest_rule);
      if (is_required[i]) {
        first = with;
        may_be_empty = false;
        rest = fmt::format("\",\" space {}", with);
      } else {
        first = first.empty() ? with : fmt::format("{} | {}", with, add_rule(first));
        rest = fmt::format("(\",\" space {} | {})", with, rest_rule);
      }
    }
    if (first.empty()) return "\"{\" space \"}\"";
    return fmt::format("\"{{\" space ({}){} space \"}}\"", first, may_be_empty ? "?" : "");
  }

  // A string that is none of the names: what begins like one and goes on otherwise. Names with escapes are not told
  // apart from others that are spelled in another way.
  std::string other_key(const std::vector<std::string>& names) {
    if (names.empty()) return "string";
    struct Branch {
      std::map<std::string, Branch> next;  // by character
      bool is_name = false;
    };
    Branch root;
    for (const std::string& name : names) {
      Branch* at = &root;
      for (size_t i = 0; i < name.size();) {
        const size_t length = decode_utf8(std::string_view(name).substr(i)).length;
        at = &at->next[name.substr(i, length)];
        i += length;
      }
      at->is_name = true;
    }
    const std::function<std::string(const Branch&)> rule = [&](const Branch& branch) -> std::string {
      std::string seen, out;
      for (const auto& [character, next] : branch.next) {
        const auto byte = static_cast<unsigned char>(character[0]);
        if (character.size() == 1 && (byte < 0x20 || byte == 0x7f || byte == '"' || byte == '\\'))
          continue;  // spelled by an escape
        seen += (character == "]" || character == "-" || character == "^" || character == "[") ? "\\" + character
                                                                                               : character;
        out += fmt::format("{} {} | ", gbnf_string(character), rule(next));
      }
      out += fmt::format(
          "([^\"\\\\\\x00-\\x1f\\x7f{}] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" [0-9a-fA-F]{{4}})) character* \"\\\"\"",
          seen);
      if (!branch.is_name) out += " | \"\\\"\"";
      return add_rule(out);
    };
    return fmt::format("\"\\\"\" {}", rule(root));
  }

  std::string array(const Json& schema, const std::string& place, int depth) {
    const int64_t least = count_of(schema, "minItems", 0, place), most = count_of(schema, "maxItems", -1, place);
    if (most >= 0 && most < least) fail(place, "\"maxItems\" is below \"minItems\"");
    if (schema.contains("prefixItems")) {
      if (!schema["prefixItems"].is_array() || (schema.contains("items") && schema["items"] != false))
        fail(place, "\"prefixItems\" with \"items\" behind it is not supported");
      std::string out;
      for (size_t i = 0; i < schema["prefixItems"].size(); ++i)
        out += (i == 0 ? "" : " \",\" space ") +
               rule_for(schema["prefixItems"][i], fmt::format("{}/prefixItems/{}", place, i), depth + 1);
      return fmt::format("\"[\" space {} space \"]\"", out.empty() ? "\"\"" : out);
    }
    const Json any = true;
    const std::string item = rule_for(schema.contains("items") ? schema["items"] : any, place + "/items", depth + 1);
    if (most == 0) return "\"[\" space \"]\"";
    const std::string items = fmt::format("{} (\",\" space {}){}", item, item,
                                          repeat(std::max<int64_t>(least - 1, 0), most < 0 ? -1 : most - 1));
    return fmt::format("\"[\" space ({}){} space \"]\"", items, least == 0 ? "?" : "");
  }

  std::string string(const Json& schema, const std::string& place) {
    if (schema.contains("pattern")) {
      if (schema.contains("minLength") || schema.contains("maxLength") || schema.contains("format"))
        fail(place, "\"pattern\" beside a length or a format is not supported");
      if (!schema["pattern"].is_string()) fail(place, "\"pattern\" must be a string");
      return fmt::format("\"\\\"\" ({}) \"\\\"\"", pattern(schema["pattern"].get<std::string>(), place));
    }
    if (schema.contains("format")) {
      const Json& format = schema["format"];
      if (format == "date" || format == "time" || format == "uuid")
        return fmt::format("\"\\\"\" {} \"\\\"\"", format.get<std::string>());
      if (format == "date-time") return "\"\\\"\" date \"T\" time \"\\\"\"";
      fail(place, fmt::format("the format {} is not supported", printable(format.dump())));
    }
    const int64_t least = count_of(schema, "minLength", 0, place), most = count_of(schema, "maxLength", -1, place);
    if (most >= 0 && most < least) fail(place, "\"maxLength\" is below \"minLength\"");
    if (least == 0 && most < 0) return "string";
    return fmt::format("\"\\\"\" character{} \"\\\"\"", repeat(least, most));
  }

  // A regular expression between ^ and $ whose characters need no escapes in JSON.
  static std::string pattern(const std::string& source, const std::string& place) {
    const auto refuse = [&](std::string_view what) { fail(place, fmt::format("\"pattern\": {}", what)); };
    if (!source.starts_with('^') || !source.ends_with('$') || source.ends_with("\\$"))
      refuse("it must stand between ^ and $");
    std::string out;
    const std::string text = source.substr(1, source.size() - 2);
    const auto class_of = [&](char c) -> std::string {
      switch (c) {
        case 'd':
          return "0-9";
        case 'w':
          return "a-zA-Z0-9_";
        case 's':
          return " ";
        default:
          return "";
      }
    };
    const auto is_plain_escape = [](char c) {
      return std::string_view(".*+?()[]{}|^$/-").find(c) != std::string_view::npos;
    };
    for (size_t i = 0; i < text.size();) {
      const char c = text[i];
      if (c == '\\') {
        if (i + 1 >= text.size()) refuse("it ends in a backslash");
        if (const std::string set = class_of(text[i + 1]); !set.empty()) {
          out += " [" + set + "]";
        } else if (is_plain_escape(text[i + 1])) {
          out += " " + gbnf_string(text.substr(i + 1, 1));
        } else {
          refuse(fmt::format("the escape \\{} is not supported", printable(text.substr(i + 1, 1))));
        }
        i += 2;
      } else if (c == '[') {
        std::string set;
        size_t k = i + 1;
        const bool negated = k < text.size() && text[k] == '^';
        if (negated) ++k;
        for (; k < text.size() && text[k] != ']'; ++k) {
          if (text[k] == '"') refuse("a quotation mark is not supported");
          if (text[k] != '\\') {
            set += text[k] == '[' || text[k] == '^' ? std::string("\\") + text[k] : text.substr(k, 1);
            continue;
          }
          if (++k >= text.size()) break;
          const std::string named = class_of(text[k]);
          if (named.empty() && !is_plain_escape(text[k])) refuse("an escape in a class is not supported");
          if (negated && text[k] == 's') refuse("\\s in a class [^...] is not supported");
          set += !named.empty()                                                      ? named
                 : std::string_view("[]-^/").find(text[k]) != std::string_view::npos ? std::string("\\") + text[k]
                                                                                     : text.substr(k, 1);
        }
        if (k >= text.size()) refuse("a class has no end");
        out += negated ? " [^" + set + "\"\\\\\\x00-\\x1f\\x7f]" : " [" + set + "]";
        i = k + 1;
      } else if (c == '(') {
        if (text.compare(i, 3, "(?:") == 0) {
          i += 2;
        } else if (text.compare(i, 2, "(?") == 0) {
          refuse("groups that look around are not supported");
        }
        out += " (";
        ++i;
      } else if (c == ')' || c == '|') {
        out += std::string(c == '|' ? " " : "") + c;
        ++i;
      } else if (c == '*' || c == '+' || c == '?') {
        out += c;
        ++i;
        if (i < text.size() && (text[i] == '?' || text[i] == '+'))
          refuse("lazy and possessive repetitions are not supported");
      } else if (c == '{') {
        const size_t end = text.find('}', i);
        if (end == std::string::npos) refuse("a repetition has no end");
        out += text.substr(i, end - i + 1);
        i = end + 1;
      } else if (c == '.') {
        out += " [^\"\\\\\\x00-\\x1f\\x7f]";
        ++i;
      } else if (c == '^' || c == '$' || c == '"') {
        refuse(fmt::format("\"{}\" is not supported within it", c));
      } else {
        const size_t length = decode_utf8(std::string_view(text).substr(i)).length;
        out += " " + gbnf_string(text.substr(i, length));
        i += length;
      }
    }
    return out.empty() ? "\"\"" : out;
  }

  // Whole numbers within bounds.
  std::string integer(const Json& schema, const std::string& place) {
    constexpr int64_t kMost = 1'000'000'000'000'000;
    const auto bound = [&](const char* key, const char* exclusive, int64_t fallback, int64_t inwards) {
      const bool is_exclusive = schema.contains(exclusive);
      if (!schema.contains(key) && !is_exclusive) return fallback;
      if (schema.contains(key) && is_exclusive)
        fail(place, fmt::format("\"{}\" beside \"{}\" is not supported", key, exclusive));
      const Json& value = schema[is_exclusive ? exclusive : key];
      if (!value.is_number_integer() || value.get<int64_t>() > kMost || value.get<int64_t>() < -kMost)
        fail(place,
             fmt::format("\"{}\" must be a whole number between -10^15 and 10^15", is_exclusive ? exclusive : key));
      return value.get<int64_t>() + (is_exclusive ? inwards : 0);
    };
    const int64_t low = bound("minimum", "exclusiveMinimum", INT64_MIN, 1),
                  high = bound("maximum", "exclusiveMaximum", INT64_MAX, -1);
    if (low == INT64_MIN && high == INT64_MAX) return "integer";
    if (low > high) fail(place, "no whole number lies within the bounds");
    std::string out;
    const auto add = [&](const std::string& alternative) { out += (out.empty() ? "" : " | ") + alternative; };
    if (low < 0) add(fmt::format("\"-\" ({})", between(high < 0 ? -high : 1, low == INT64_MIN ? INT64_MAX : -low)));
    if (high >= 0) add(between(std::max<int64_t>(low, 0), high));
    return "(" + out + ")";
  }

  // Decimal numbers from low to high, both >= 0; high INT64_MAX: without an end (of up to 16 digits).
  static std::string between(int64_t low, int64_t high) {
    if (high == INT64_MAX) {
      const std::string digits = std::to_string(low);
      const int64_t end = digits.size() >= 16 ? 9'999'999'999'999'999
                                              : static_cast<int64_t>(std::stoll(std::string(digits.size(), '9')));
      std::string out = between(low, end);
      if (digits.size() < 16) out += fmt::format(" | [1-9] [0-9]{{{},15}}", digits.size());
      return out;
    }
    std::string out;
    // By number of digits, and there by the first digit that differs.
    for (int64_t begin = low; begin <= high;) {
      const std::string digits = std::to_string(begin);
      const int64_t last = static_cast<int64_t>(std::stoll(std::string(digits.size(), '9')));
      const int64_t end = std::min(high, last);
      out += (out.empty() ? "" : " | ") + same_length(digits, std::to_string(end));
      if (end == high) break;
      begin = end + 1;
    }
    return out;
  }
  static std::string same_length(const std::string& low, const std::string& high) {
    if (low.empty()) return "\"\"";
    const size_t rest = low.size() - 1;
    const auto range = [](char a, char b) { return a == b ? fmt::format("\"{}\"", a) : fmt::format("[{}-{}]", a, b); };
    const auto free_digits = [&] { return rest == 0 ? std::string() : fmt::format(" [0-9]{{{}}}", rest); };
    const std::string zeros(rest, '0'), nines(rest, '9');
    if (low[0] == high[0])
      return fmt::format("{} ({})", range(low[0], low[0]), same_length(low.substr(1), high.substr(1)));
    std::string out;
    char first = low[0], last = high[0];
    const auto add = [&](const std::string& alternative) { out += (out.empty() ? "" : " | ") + alternative; };
    if (low.substr(1) != zeros) {
      add(fmt::format("{} ({})", range(first, first), same_length(low.substr(1), nines)));
      ++first;
    }
    std::string top;
    if (high.substr(1) != nines) {
      top = fmt::format("{} ({})", range(last, last), same_length(zeros, high.substr(1)));
      --last;
    }
    if (first <= last) add(range(first, last) + free_digits());
    if (!top.empty()) add(top);
    return "(" + out + ")";
  }

  const Json& document_;
  std::string rules_;
  std::map<std::string, std::string> references_;
  int num_rules_ = 0;
  int schemas_ = 0;
};

}  // namespace

std::string json_schema_to_gbnf(const nlohmann::ordered_json& schema) {
  return Converter(schema).run();
}

}  // namespace foretoken
