#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/template/value.h"

namespace foretoken::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr positional_rest, named_rest;  // *args, **kwargs
};

struct Expression {
  enum class Kind {
    kConstant,
    kName,
    kList,
    kTuple,
    kDict,       // operands: key, value, key, value ...
    kAttribute,  // operands[0].name
    kItem,       // operands[0][operands[1]]
    kSlice,      // operands[0][operands[1]:operands[2]:operands[3]], of which the last three may be missing
    kCall,
    kFilter,  // operands[0] | name(arguments); operands[0] is missing in a filter block
    kTest,
    kNegative,
    kPositive,
    kNot,
    kAnd,
    kOr,
    kBinary,           // operands[0] name operands[1]
    kConcat,           // ~
    kCompare,          // operands[0] operators[0] operands[1] operators[1] operands[2] ...
    kChoice,           // operands[1] if operands[0] else operands[2], which may be missing
    kAttributeTarget,  // name.attribute, assigned to
  };
  Kind kind = Kind::kConstant;
  int line = 1;
  std::string name;
  std::string attribute;
  Value constant;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> operators;
  CallArguments arguments;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Parameter {
  std::string name;
  ExpressionPtr fallback;  // may be missing
};

struct Statement {
  enum class Kind {
    kData,
    kOutput,
    kSet,       // target = value
    kSetBlock,  // target = body, through filter where there is one
    kIf,        // value, body, orelse
    kFor,
    kMacro,
    kCallBlock,
    kFilterBlock,
    kWith,
    kScope,  // body in a scope of its own
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kData;
  int line = 1;
  Text data;
  std::string name;  // of a macro
  ExpressionPtr target, value, filter;
  std::vector<ExpressionPtr> outputs;
  ExpressionPtr condition;  // of a for loop
  bool is_recursive = false;
  Body body, orelse;
  std::vector<Parameter> parameters;
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;  // of a macro or call block
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> bindings;        // of with
};

/// The program of a template. Throws TemplateError with the line.
[[nodiscard]] Body parse_template(std::string_view source);

}  // namespace foretoken::jinja
