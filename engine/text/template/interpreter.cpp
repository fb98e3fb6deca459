#include "engine/text/template/interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/text/template/filters.h"
#include "engine/text/template/methods.h"
#include "engine/text/utf8.h"

namespace foretoken::jinja {

namespace {

using Kind = Expression::Kind;

// Of evaluations within each other: the machine's stack is finite. A macro that calls itself takes some ten.
constexpr int kMostCalls = 1000;

class Nesting {
 public:
  explicit Nesting(int& depth) : depth_(depth) {
    if (depth_ >= kMostCalls) raise("calls are nested too deeply");
    ++depth_;
  }
  ~Nesting() { --depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  int& depth_;
};

// Sets a variable for as long as this lives.
template <class T>
class Swap {
 public:
  Swap(T& variable, T value) : variable_(variable), before_(std::exchange(variable, value)) {}
  ~Swap() { variable_ = before_; }
  Swap(const Swap&) = delete;
  Swap& operator=(const Swap&) = delete;

 private:
  T& variable_;
  const T before_;
};

}  // namespace

struct Interpreter::Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> variables;
  bool is_kept = false;

  [[nodiscard]] Value* find(const std::string& name) {
    for (auto& [known, value] : variables) {
      if (known == name) return &value;
    }
    return nullptr;
  }
  // It and those around it must outlive the block.
  void keep() {
    for (Scope* scope = this; scope != nullptr && !scope->is_kept; scope = scope->parent) scope->is_kept = true;
  }
};

class Interpreter::OpenScope {
 public:
  OpenScope(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter), before_(interpreter.scope_), scope_(std::make_unique<Scope>()) {
    interpreter.budget_.allocate(sizeof(Scope));
    scope_->parent = parent;
    interpreter.scope_ = scope_.get();
  }
  ~OpenScope() {
    interpreter_.scope_ = before_;
    if (scope_->is_kept) interpreter_.kept_scopes_.push_back(std::move(scope_));
  }
  OpenScope(const OpenScope&) = delete;
  OpenScope& operator=(const OpenScope&) = delete;

 private:
  Interpreter& interpreter_;
  Scope* const before_;
  std::unique_ptr<Scope> scope_;
};

Interpreter::Interpreter(std::time_t now) : now_(now) {}
Interpreter::~Interpreter() = default;

Text Interpreter::run(const Body& program, std::vector<std::pair<std::string, Value>> variables) {
  Text out;
  const Swap swap(out_, &out);
  const OpenScope globals(*this, nullptr);
  scope_->variables = std::move(variables);
  for (auto& [name, value] : global_functions()) {
    if (scope_->find(name) == nullptr) scope_->variables.emplace_back(name, value);
  }
  const OpenScope top(*this, scope_);
  (void)execute(program);
  return out;
}

Value Interpreter::make_namespace(Dict attributes) {
  budget_.allocate(sizeof(Namespace));
  namespaces_.push_back(std::make_unique<Namespace>());
  namespaces_.back()->attributes = std::move(attributes);
  return namespaces_.back().get();
}

// ---- statements ----

void Interpreter::output(const Text& text) {
  budget_.allocate(text.size());
  out_->append(text);
}

Text Interpreter::capture(const Body& body) {
  Text out;
  const Swap swap(out_, &out);
  const OpenScope scope(*this, scope_);
  (void)execute(body);
  return out;
}

Interpreter::Flow Interpreter::execute(const Body& body) {
  for (const auto& statement : body) {
    const Flow flow = execute(*statement);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Statement& statement) {
  budget_.work();
  const Nesting nesting(depth_);
  switch (statement.kind) {
    case Statement::Kind::kData:
      output(statement.data);
      return Flow::kNormal;
    case Statement::Kind::kOutput:
      for (const ExpressionPtr& expression : statement.outputs) output(to_text(evaluate(*expression), budget_));
      return Flow::kNormal;
    case Statement::Kind::kSet:
      assign(*statement.target, evaluate(*statement.value));
      return Flow::kNormal;
    case Statement::Kind::kSetBlock: {
      Value value = capture(statement.body);
      if (statement.filter) value = evaluate_filter(*statement.filter, &value);
      assign(*statement.target, value);
      return Flow::kNormal;
    }
    case Statement::Kind::kIf:
      return execute(truth(evaluate(*statement.value)) ? statement.body : statement.orelse);
    case Statement::Kind::kFor:
      return execute_for(statement, evaluate(*statement.value), 1);
    case Statement::Kind::kMacro:
      set(statement.name, make_macro(statement, statement.name));
      return Flow::kNormal;
    case Statement::Kind::kCallBlock: {
      const Value caller = make_macro(statement, "caller");
      output(to_text(evaluate_call(*statement.value, &caller), budget_));
      return Flow::kNormal;
    }
    case Statement::Kind::kFilterBlock: {
      const Value value = capture(statement.body);
      output(to_text(evaluate_filter(*statement.filter, &value), budget_));
      return Flow::kNormal;
    }
    case Statement::Kind::kWith: {
      std::vector<Value> values;
      for (const auto& [target, value] : statement.bindings) values.push_back(evaluate(*value));
      const OpenScope scope(*this, scope_);
      for (size_t i = 0; i < values.size(); ++i) assign(*statement.bindings[i].first, values[i]);
      return execute(statement.body);
    }
    case Statement::Kind::kScope: {
      const OpenScope scope(*this, scope_);
      return execute(statement.body);
    }
    case Statement::Kind::kBreak:
      return Flow::kBreak;
    case Statement::Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_for(const Statement& statement, const Value& items, int depth) {
  std::vector<Value> values = iterate(items, budget_);
  if (statement.condition) {
    std::vector<Value> kept;
    for (Value& value : values) {
      budget_.work();
      const OpenScope scope(*this, scope_);
      assign(*statement.target, value);
      if (truth(evaluate(*statement.condition))) kept.push_back(std::move(value));
    }
    values = std::move(kept);
  }
  if (values.empty()) {
    const OpenScope scope(*this, scope_);
    return execute(statement.orelse);
  }
  const auto loop = std::make_shared<Loop>();
  loop->items = std::move(values);
  loop->depth = depth;
  for (const Value& value : loop->items) loop->nesting = std::max(loop->nesting, depth_above(value.depth()));
  // Somebody may have kept it; it must not hold itself.
  const std::shared_ptr<void> end(nullptr, [&loop](void*) {
    loop->is_over = true;
    loop->index = std::min(loop->index, loop->items.size() - 1);
    loop->last_changed = {};
  });
  if (statement.is_recursive) {
    scope_->keep();
    loop->recurse = [&statement, scope = scope_, depth](Interpreter& interpreter, const Value& inner) {
      return interpreter.run_recursive(statement, scope, inner, depth + 1);
    };
  }
  for (loop->index = 0; loop->index < loop->items.size(); ++loop->index) {
    budget_.work();
    const OpenScope scope(*this, scope_);
    set("loop", loop);
    assign(*statement.target, loop->items[loop->index]);
    if (execute(statement.body) == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

Value Interpreter::run_recursive(const Statement& loop, Scope* scope, const Value& items, int depth) {
  const Nesting nesting(depth_);
  Text out;
  const Swap swap_out(out_, &out);
  const Swap swap_scope(scope_, scope);
  (void)execute_for(loop, items, depth);
  return out;
}

Value Interpreter::make_macro(const Statement& macro, const std::string& name) {
  scope_->keep();
  budget_.allocate(sizeof(Function));
  auto function = std::make_shared<Function>();
  function->name = fmt::format("Macro '{}'", name);
  function->call = [&macro, name, scope = scope_](Interpreter& interpreter, Arguments& arguments) {
    return interpreter.call_macro(macro, name, scope, arguments);
  };
  return std::shared_ptr<const Function>(std::move(function));
}

Value Interpreter::call_macro(const Statement& macro, const std::string& name, Scope* scope, Arguments& arguments) {
  Text out;
  const Swap swap_out(out_, &out);
  const Swap swap_scope(scope_, scope);
  const OpenScope own(*this, scope);
  const auto take_named = [&](const std::string& wanted) -> std::optional<Value> {
    for (size_t i = 0; i < arguments.named.size(); ++i) {
      if (arguments.named[i].first != wanted) continue;
      Value value = std::move(arguments.named[i].second);
      arguments.named.erase(arguments.named.begin() + static_cast<ptrdiff_t>(i));
      return value;
    }
    return std::nullopt;
  };
  bool found_caller = false;
  std::vector<const Parameter*> missing;
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    if (i < arguments.positional.size()) {
      set(parameter.name, arguments.positional[i]);
    } else {
      found_caller |= parameter.name == "caller";
      std::optional<Value> given = take_named(parameter.name);
      if (given) {
        set(parameter.name, std::move(*given));
      } else {
        missing.push_back(&parameter);
      }
    }
  }
  if (macro.uses_caller && !found_caller) {
    const std::optional<Value> caller = take_named("caller");
    set("caller", caller && !caller->is_none() ? *caller : Value(Undefined{"caller"}));
  }
  if (macro.uses_kwargs) {
    Dict rest;
    for (auto& [key, value] : arguments.named) rest.set(Value::string(key), value, budget_);
    set("kwargs", std::move(rest));
  } else if (!arguments.named.empty()) {
    raise(fmt::format("macro '{}' takes no keyword argument '{}'", name, printable(arguments.named[0].first)));
  }
  const size_t taken = std::min(macro.parameters.size(), arguments.positional.size());
  if (macro.uses_varargs) {
    set("varargs",
        Value::list({arguments.positional.begin() + static_cast<ptrdiff_t>(taken), arguments.positional.end()},
                    List::Kind::kTuple));
  } else if (arguments.positional.size() > taken) {
    raise(fmt::format("macro '{}' takes not more than {} argument(s)", name, macro.parameters.size()));
  }
  // Defaults may name the parameters before them.
  for (const Parameter* parameter : missing) {
    set(parameter->name, parameter->fallback ? evaluate(*parameter->fallback)
                                             : Value(Undefined{fmt::format("parameter '{}'", parameter->name)}));
  }
  (void)execute(macro.body);
  return out;
}

void Interpreter::set(const std::string& name, Value value) {
  if (Value* known = scope_->find(name)) {
    *known = std::move(value);
  } else {
    scope_->variables.emplace_back(name, std::move(value));
  }
}

void Interpreter::assign(const Expression& target, const Value& value) {
  if (target.kind == Kind::kName) return set(target.name, value);
  if (target.kind == Kind::kAttributeTarget) {
    const Value object = look_up(target.name);
    if (!object.is_namespace()) raise("cannot assign attribute on non-namespace object");
    if (value.depth() >= Budget::kMostDepth) raise("values are nested too deeply");
    return object.name_space().attributes.set(Value::string(target.attribute), value, budget_);
  }
  if (value.is_undefined() && !target.operands.empty()) raise("not enough values to unpack");
  const std::vector<Value> items = iterate(value, budget_);
  if (items.size() != target.operands.size())
    raise(fmt::format("{} values to unpack, {} expected", items.size(), target.operands.size()));
  for (size_t i = 0; i < items.size(); ++i) assign(*target.operands[i], items[i]);
}

Value Interpreter::look_up(const std::string& name) const {
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    if (const Value* value = scope->find(name)) return *value;
  }
  return Undefined{fmt::format("'{}'", name)};
}

// ---- expressions ----

Value Interpreter::evaluate(const Expression& e) {
  budget_.work();
  const Nesting nesting(depth_);
  const auto operand = [&](size_t i) { return evaluate(*e.operands[i]); };
  switch (e.kind) {
    case Kind::kConstant:
      return e.constant;
    case Kind::kName:
      return look_up(e.name);
    case Kind::kList:
    case Kind::kTuple: {
      std::vector<Value> items;
      for (size_t i = 0; i < e.operands.size(); ++i) items.push_back(operand(i));
      budget_.allocate(items.size() * sizeof(Value));
      return Value::list(std::move(items), e.kind == Kind::kList ? List::Kind::kList : List::Kind::kTuple);
    }
    case Kind::kDict: {
      Dict dict;
      for (size_t i = 0; i + 1 < e.operands.size(); i += 2) {
        Value key = operand(i);
        dict.set(std::move(key), operand(i + 1), budget_);
      }
      return dict;
    }
    case Kind::kAttribute:
      return attribute(operand(0), e.name);
    case Kind::kItem: {
      const Value object = operand(0);
      return item(object, operand(1));
    }
    case Kind::kSlice: {
      const Value object = operand(0);
      SliceBounds bounds;
      if (e.operands[1]) bounds.begin = operand(1);
      if (e.operands[2]) bounds.end = operand(2);
      if (e.operands[3]) bounds.step = operand(3);
      return slice(object, bounds, budget_);
    }
    case Kind::kCall:
      return evaluate_call(e, nullptr);
    case Kind::kFilter:
      return evaluate_filter(e, nullptr);
    case Kind::kTest: {
      const Value value = operand(0);
      Arguments arguments = evaluate(e.arguments);
      return call_test(*this, e.name, value, arguments);
    }
    case Kind::kNegative:
      return negate(operand(0));
    case Kind::kPositive: {
      const Value value = operand(0);
      return value.is_bool() ? Value(value.as_int()) : value.is_number() ? value : negate(value);
    }
    case Kind::kNot:
      return !truth(operand(0));
    case Kind::kAnd: {
      Value left = operand(0);
      return truth(left) ? operand(1) : left;
    }
    case Kind::kOr: {
      Value left = operand(0);
      return truth(left) ? left : operand(1);
    }
    case Kind::kBinary: {
      const Value left = operand(0);
      return binary(e.name, left, operand(1), budget_);
    }
    case Kind::kConcat: {
      Text joined;
      for (size_t i = 0; i < e.operands.size(); ++i) {
        joined.append(to_text(operand(i), budget_));
      }
      budget_.allocate(joined.size());
      return joined;
    }
    case Kind::kCompare:
      return evaluate_compare(e);
    case Kind::kChoice:
      if (truth(operand(0))) return operand(1);
      if (e.operands[2]) return operand(2);
      return Undefined{"the value of an inline if-expression without an else"};
    case Kind::kAttributeTarget:
      break;
  }
  FT_CHECK(false);
  return {};
}

Value Interpreter::evaluate_compare(const Expression& e) {
  Value left = evaluate(*e.operands[0]);
  for (size_t i = 0; i < e.operators.size(); ++i) {
    const std::string& op = e.operators[i];
    Value right = evaluate(*e.operands[i + 1]);
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equal(left, right, budget_) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(right, left, budget_) == (op == "in");
    } else {
      holds = compare(op, left, right, budget_);
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Arguments Interpreter::evaluate(const CallArguments& arguments) {
  Arguments out;
  for (const ExpressionPtr& e : arguments.positional) out.positional.push_back(evaluate(*e));
  for (const auto& [name, e] : arguments.named) out.named.emplace_back(name, evaluate(*e));
  if (arguments.positional_rest) {
    for (Value& value : iterate(evaluate(*arguments.positional_rest), budget_))
      out.positional.push_back(std::move(value));
  }
  if (arguments.named_rest) {
    const Value rest = evaluate(*arguments.named_rest);
    if (!rest.is_dict()) raise("the argument after ** must be a mapping");
    for (const auto& [key, value] : rest.dict().items) {
      if (!key.is_string()) raise("keywords must be strings");
      out.named.emplace_back(key.text().bytes, value);
    }
  }
  for (size_t i = 0; i < out.named.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      if (out.named[i].first == out.named[k].first)
        raise(fmt::format("the keyword argument '{}' is given twice", printable(out.named[i].first)));
    }
  }
  return out;
}

Value Interpreter::evaluate_call(const Expression& e, const Value* caller) {
  const Value callable = evaluate(*e.operands[0]);
  Arguments arguments = evaluate(e.arguments);
  if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
  return call(callable, arguments);
}

Value Interpreter::call(const Value& callable, Arguments& arguments) {
  const Nesting nesting(depth_);
  if (callable.is_undefined()) raise(fmt::format("{} is undefined", callable.undefined_what()));
  if (callable.is_function()) return callable.function().call(*this, arguments);
  if (callable.is_loop()) {
    if (!callable.loop()->recurse) raise("the loop is not marked as recursive");
    if (arguments.positional.size() != 1 || !arguments.named.empty()) raise("loop() takes one argument");
    return callable.loop()->recurse(*this, arguments.positional[0]);
  }
  raise(fmt::format("'{}' object is not callable", type_name(callable)));
}

Value Interpreter::evaluate_filter(const Expression& e, const Value* input) {
  const Value value =
      e.operands[0] ? (e.operands[0]->kind == Kind::kFilter && input != nullptr ? evaluate_filter(*e.operands[0], input)
                                                                                : evaluate(*e.operands[0]))
                    : *input;
  Arguments arguments = evaluate(e.arguments);
  return call_filter(*this, e.name, value, arguments);
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) raise(fmt::format("{} is undefined", object.undefined_what()));
  Value value = own_attribute(*this, object, name);
  if (!value.is_undefined()) return value;
  return subscript(object, Value::string(name), budget_);
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) raise(fmt::format("{} is undefined", object.undefined_what()));
  Value value = subscript(object, key, budget_);
  if (!value.is_undefined() || !key.is_string()) return value;
  Value attribute = own_attribute(*this, object, key.text().bytes);
  return attribute.is_undefined() ? value : attribute;
}

}  // namespace foretoken::jinja
