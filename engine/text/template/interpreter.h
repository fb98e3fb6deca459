#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/template/syntax.h"
#include "engine/text/template/value.h"

namespace foretoken::jinja {

/// Runs a template's program once. Names mean what they do in Python's jinja2: a loop, a macro, a `with` and a block
/// `set` have variables of their own, an `if` has not; only a namespace can be changed from within.
class Interpreter {
 public:
  /// `now`: what strftime_now shows, in local time.
  explicit Interpreter(std::time_t now);
  ~Interpreter();

  /// The text that the program makes of these variables. Throws TemplateError.
  [[nodiscard]] Text run(const Body& program, std::vector<std::pair<std::string, Value>> variables);

  // For filters, tests and methods.

  [[nodiscard]] Budget& budget() { return budget_; }
  [[nodiscard]] std::time_t now() const { return now_; }
  [[nodiscard]] Value call(const Value& callable, Arguments& arguments);
  /// object.name; undefined where there is none.
  [[nodiscard]] Value attribute(const Value& object, const std::string& name);
  /// object[key]; undefined where there is none.
  [[nodiscard]] Value item(const Value& object, const Value& key);
  [[nodiscard]] Value make_namespace(Dict attributes);

 private:
  struct Scope;
  class OpenScope;
  enum class Flow { kNormal, kBreak, kContinue };

  Flow execute(const Body& body);
  Flow execute(const Statement& statement);
  Flow execute_for(const Statement& loop, const Value& items, int depth);
  Value run_recursive(const Statement& loop, Scope* scope, const Value& items, int depth);
  Value make_macro(const Statement& macro, const std::string& name);
  Value call_macro(const Statement& macro, const std::string& name, Scope* scope, Arguments& arguments);
  /// What the body writes.
  Text capture(const Body& body);
  void output(const Text& text);

  Value evaluate(const Expression& expression);
  Value evaluate_compare(const Expression& expression);
  Value evaluate_call(const Expression& expression, const Value* caller);
  Arguments evaluate(const CallArguments& arguments);
  Value evaluate_filter(const Expression& filter, const Value* input);

  [[nodiscard]] Value look_up(const std::string& name) const;
  void assign(const Expression& target, const Value& value);
  void set(const std::string& name, Value value);

  Budget budget_;
  const std::time_t now_;
  Scope* scope_ = nullptr;
  Text* out_ = nullptr;
  int depth_ = 0;                                    // of calls within this program's own machine
  std::vector<std::unique_ptr<Scope>> kept_scopes_;  // that a macro or a loop object may still look into
  std::vector<std::unique_ptr<Namespace>> namespaces_;
};

}  // namespace foretoken::jinja
