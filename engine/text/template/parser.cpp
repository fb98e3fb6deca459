#include <fmt/format.h>

#include <algorithm>

#include "engine/text/template/filters.h"
#include "engine/text/template/lexer.h"
#include "engine/text/template/syntax.h"
#include "engine/text/utf8.h"

namespace foretoken::jinja {

namespace {

using Kind = Expression::Kind;

class Parser {
 public:
  static constexpr int kMostLinks = 200;  // of one chain of operators, filters or elif

  explicit Parser(std::string_view source) : tokens_(tokenize_template(source)) {}

  Body run() {
    Body body = parse_body({});
    return body;
  }

 private:
  // ---- tokens ----

  [[nodiscard]] const Token& token(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  [[nodiscard]] bool is(Token::Kind kind) const { return token().kind == kind; }
  [[nodiscard]] bool is_name(std::string_view name, size_t ahead = 0) const {
    return token(ahead).kind == Token::Kind::kName && token(ahead).text == name;
  }
  [[nodiscard]] bool is_operator(std::string_view op, size_t ahead = 0) const {
    return token(ahead).kind == Token::Kind::kOperator && token(ahead).text == op;
  }
  bool take_name(std::string_view name) {
    if (!is_name(name)) return false;
    ++at_;
    return true;
  }
  bool take_operator(std::string_view op) {
    if (!is_operator(op)) return false;
    ++at_;
    return true;
  }
  void expect_operator(std::string_view op) {
    if (!take_operator(op)) fail(fmt::format("expected '{}', got {}", op, describe()));
  }
  void expect_name(std::string_view name) {
    if (!take_name(name)) fail(fmt::format("expected '{}', got {}", name, describe()));
  }
  std::string expect_any_name() {
    if (!is(Token::Kind::kName)) fail(fmt::format("expected a name, got {}", describe()));
    return tokens_[at_++].text;
  }
  void expect(Token::Kind kind, std::string_view what) {
    if (!is(kind)) fail(fmt::format("expected {}, got {}", what, describe()));
    ++at_;
  }
  [[nodiscard]] std::string describe() const {
    switch (token().kind) {
      case Token::Kind::kEnd:
        return "the end of the template";
      case Token::Kind::kBlockEnd:
      case Token::Kind::kOutputEnd:
        return "the end of the tag";
      case Token::Kind::kInt:
      case Token::Kind::kFloat:
        return "a number";
      default:
        return fmt::format("\"{}\"", printable(token().text, 40));
    }
  }
  [[noreturn]] void fail(std::string_view what) const { raise(fmt::format("line {}: {}", token().line, what)); }

  // Every nested expression or block; the machine's stack is finite.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > Budget::kMostDepth) parser_.fail("nested too deeply");
    }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  ExpressionPtr make(Kind kind) const {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = token().line;
    return node;
  }
  template <class... Operands>
  ExpressionPtr make(Kind kind, Operands... operands) const {
    ExpressionPtr node = make(kind);
    (node->operands.push_back(std::move(operands)), ...);
    return node;
  }
  std::unique_ptr<Statement> make(Statement::Kind kind) const {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = token().line;
    return node;
  }

  // ---- statements ----

  // Up to a tag that begins with one of `ends`, whose name is then the current token; with no ends, the whole rest.
  Body parse_body(std::vector<std::string_view> ends) {
    const Nesting nesting(*this);
    Body body;
    while (!is(Token::Kind::kEnd)) {
      if (is(Token::Kind::kData)) {
        auto node = make(Statement::Kind::kData);
        node->data.bytes = tokens_[at_++].text;
        body.push_back(std::move(node));
      } else if (is(Token::Kind::kOutputBegin)) {
        ++at_;
        auto node = make(Statement::Kind::kOutput);
        node->outputs.push_back(parse_tuple());
        expect(Token::Kind::kOutputEnd, "the end of the output");
        body.push_back(std::move(node));
      } else {
        expect(Token::Kind::kBlockBegin, "a tag");
        if (std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return is_name(end); })) return body;
        body.push_back(parse_statement());
        expect(Token::Kind::kBlockEnd, "the end of the tag");
      }
    }
    if (!ends.empty()) fail(fmt::format("the end of the template came before {{% {} %}}", ends.front()));
    return body;
  }

  // The body of a statement whose head has been read.
  Body parse_block(std::vector<std::string_view> ends) {
    (void)take_operator(":");
    expect(Token::Kind::kBlockEnd, "the end of the tag");
    return parse_body(std::move(ends));
  }
  Body parse_block_to(std::string_view end) {
    Body body = parse_block({end});
    ++at_;
    return body;
  }

  std::unique_ptr<Statement> parse_statement() {
    if (!is(Token::Kind::kName)) fail("a tag without a name");
    const std::string name = tokens_[at_].text;
    ++at_;
    if (name == "for") return parse_for();
    if (name == "if") return parse_if();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "call") return parse_call_block();
    if (name == "filter") {
      auto node = make(Statement::Kind::kFilterBlock);
      node->filter = parse_filter(nullptr, /*behind_pipe=*/true);
      node->body = inner_body([&] { return parse_block_to("endfilter"); });
      return node;
    }
    if (name == "with") return parse_with();
    if (name == "generation") {
      // Marks what the model has written, for training; here it is a scope and nothing more.
      auto node = make(Statement::Kind::kScope);
      node->body = inner_body([&] { return parse_block_to("endgeneration"); });
      return node;
    }
    if (name == "print") {
      auto node = make(Statement::Kind::kOutput);
      while (!is(Token::Kind::kBlockEnd)) {
        if (!node->outputs.empty()) expect_operator(",");
        node->outputs.push_back(parse_expression());
      }
      return node;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail(fmt::format("'{}' outside of a loop", name));
      return make(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
    }
    --at_;
    for (const std::string_view known : {"block", "extends", "include", "import", "from", "autoescape"}) {
      if (name == known) fail(fmt::format("the tag '{}' is not supported", name));
    }
    fail(fmt::format("unknown tag {}", describe()));
  }

  // A body that is a function or a loop of its own: unknown filters in it are errors even if the loop never runs.
  template <class Parse>
  Body inner_body(const Parse& parse) {
    const bool soft = std::exchange(is_conditional_, false);
    Body body = parse();
    is_conditional_ = soft;
    return body;
  }

  std::unique_ptr<Statement> parse_for() {
    auto node = make(Statement::Kind::kFor);
    node->target = parse_target({"in"}, /*with_namespace=*/false);
    expect_name("in");
    node->value = parse_tuple(/*with_choice=*/false, {"recursive"});
    const bool soft = std::exchange(is_conditional_, false);
    if (take_name("if")) node->condition = parse_expression();
    node->is_recursive = take_name("recursive");
    ++loops_;
    node->body = parse_block({"endfor", "else"});
    --loops_;
    if (take_name("else")) {
      node->orelse = parse_block_to("endfor");
    } else {
      ++at_;
    }
    is_conditional_ = soft;
    return node;
  }

  std::unique_ptr<Statement> parse_if() {
    auto node = make(Statement::Kind::kIf);
    const bool soft = std::exchange(is_conditional_, true);
    node->value = parse_tuple(/*with_choice=*/false);
    node->body = parse_block({"elif", "else", "endif"});
    Statement* last = node.get();
    int links = 0;  // of the chain, each of which lies within the one before
    while (take_name("elif")) {
      auto next = make(Statement::Kind::kIf);
      next->value = parse_tuple(/*with_choice=*/false);
      next->body = parse_block({"elif", "else", "endif"});
      last->orelse.push_back(std::move(next));
      last = last->orelse.back().get();
      if (++links > kMostLinks) fail("too many elif");
    }
    if (take_name("else")) {
      last->orelse = parse_block_to("endif");
    } else {
      ++at_;
    }
    is_conditional_ = soft;
    return node;
  }

  std::unique_ptr<Statement> parse_set() {
    auto node = make(Statement::Kind::kSet);
    node->target = parse_target({}, /*with_namespace=*/true);
    if (take_operator("=")) {
      node->value = parse_tuple();
      return node;
    }
    node->kind = Statement::Kind::kSetBlock;
    node->filter = parse_filter(nullptr, /*behind_pipe=*/false);
    node->body = inner_body([&] { return parse_block_to("endset"); });
    return node;
  }

  std::unique_ptr<Statement> parse_with() {
    auto node = make(Statement::Kind::kWith);
    while (!is(Token::Kind::kBlockEnd)) {
      if (!node->bindings.empty()) expect_operator(",");
      ExpressionPtr target = parse_target({}, /*with_namespace=*/false);
      expect_operator("=");
      ExpressionPtr value = parse_expression();
      node->bindings.emplace_back(std::move(target), std::move(value));
    }
    node->body = inner_body([&] { return parse_block_to("endwith"); });
    return node;
  }

  void parse_signature(std::vector<Parameter>& parameters) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!parameters.empty()) expect_operator(",");
      Parameter parameter;
      parameter.name = assignable(expect_any_name());
      if (take_operator("=")) {
        parameter.fallback = parse_expression();
      } else if (!parameters.empty() && parameters.back().fallback) {
        fail("a parameter without a default behind one that has a default");
      }
      parameters.push_back(std::move(parameter));
    }
    expect_operator(")");
  }

  // A macro's body, with what of its special variables it names.
  void parse_macro_body(Statement& node, std::string_view end) {
    const Uses outer = std::exchange(uses_, Uses());
    const int loops = std::exchange(loops_, 0);
    node.body = inner_body([&] { return parse_block_to(end); });
    loops_ = loops;
    node.uses_caller = uses_.caller;
    node.uses_varargs = uses_.varargs;
    node.uses_kwargs = uses_.kwargs;
    // A macro around it has named them too.
    uses_ = {outer.caller || uses_.caller, outer.varargs || uses_.varargs, outer.kwargs || uses_.kwargs};
  }

  std::unique_ptr<Statement> parse_macro() {
    auto node = make(Statement::Kind::kMacro);
    node->name = assignable(expect_any_name());
    parse_signature(node->parameters);
    parse_macro_body(*node, "endmacro");
    return node;
  }

  std::unique_ptr<Statement> parse_call_block() {
    auto node = make(Statement::Kind::kCallBlock);
    if (is_operator("(")) parse_signature(node->parameters);
    node->value = parse_expression();
    if (node->value->kind != Kind::kCall) fail("expected a call");
    parse_macro_body(*node, "endcall");
    return node;
  }

  // ---- targets ----

  std::string assignable(std::string name) const {
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) fail(fmt::format("can't assign to '{}'", name));
    }
    return name;
  }

  ExpressionPtr parse_one_target(bool with_namespace) {
    const Nesting nesting(*this);
    if (take_operator("(")) {
      ExpressionPtr tuple = parse_targets({}, with_namespace);
      expect_operator(")");
      return tuple;
    }
    ExpressionPtr target = make(Kind::kName);
    target->name = assignable(expect_any_name());
    if (with_namespace && take_operator(".")) {
      target->kind = Kind::kAttributeTarget;
      target->attribute = expect_any_name();
    }
    return target;
  }

  ExpressionPtr parse_targets(const std::vector<std::string_view>& ends, bool with_namespace) {
    std::vector<ExpressionPtr> targets;
    bool is_tuple = false;
    while (true) {
      if (!targets.empty() && is_tuple_end(ends)) break;
      targets.push_back(parse_one_target(with_namespace));
      if (!take_operator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) return std::move(targets.front());
    ExpressionPtr tuple = make(Kind::kTuple);
    tuple->operands = std::move(targets);
    return tuple;
  }
  ExpressionPtr parse_target(const std::vector<std::string_view>& ends, bool with_namespace) {
    return parse_targets(ends, with_namespace);
  }

  // ---- expressions ----

  [[nodiscard]] bool is_tuple_end(const std::vector<std::string_view>& ends) const {
    if (is(Token::Kind::kOutputEnd) || is(Token::Kind::kBlockEnd) || is_operator(")")) return true;
    return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return is_name(end); });
  }

  ExpressionPtr parse_tuple(bool with_choice = true, const std::vector<std::string_view>& ends = {},
                            bool in_parentheses = false) {
    std::vector<ExpressionPtr> items;
    bool is_tuple = false;
    while (true) {
      if (!items.empty()) expect_operator(",");
      if (is_tuple_end(ends)) break;
      items.push_back(with_choice ? parse_expression() : parse_or());
      if (!is_operator(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) {
      if (!items.empty()) return std::move(items.front());
      if (!in_parentheses) fail(fmt::format("expected an expression, got {}", describe()));
    }
    ExpressionPtr tuple = make(Kind::kTuple);
    tuple->operands = std::move(items);
    return tuple;
  }

  ExpressionPtr parse_expression() {
    const Nesting nesting(*this);
    const bool soft = is_conditional_;
    ExpressionPtr first = parse_or();
    for (int n = 0; take_name("if"); ++n) {
      limit(n);
      is_conditional_ = true;
      ExpressionPtr condition = parse_or();
      ExpressionPtr otherwise;
      if (take_name("else")) otherwise = parse_expression();
      first = make(Kind::kChoice, std::move(condition), std::move(first), std::move(otherwise));
    }
    is_conditional_ = soft;
    return first;
  }

  // Operators that follow each other make a tree as deep as they are many.
  void limit(int n) const {
    if (n > kMostLinks) fail("too many operators in one expression");
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    for (int n = 0; take_name("or"); ++n) {
      limit(n);
      left = make(Kind::kOr, std::move(left), parse_and());
    }
    return left;
  }
  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    for (int n = 0; take_name("and"); ++n) {
      limit(n);
      left = make(Kind::kAnd, std::move(left), parse_not());
    }
    return left;
  }
  ExpressionPtr parse_not() {
    if (!take_name("not")) return parse_compare();
    const Nesting nesting(*this);
    return make(Kind::kNot, parse_not());
  }

  ExpressionPtr parse_compare() {
    ExpressionPtr first = parse_sum();
    ExpressionPtr compare;
    while (true) {
      std::string op;
      if (is(Token::Kind::kOperator)) {
        for (const std::string_view known : {"==", "!=", "<", "<=", ">", ">="}) {
          if (token().text == known) op = known;
        }
        if (op.empty()) break;
        ++at_;
      } else if (take_name("in")) {
        op = "in";
      } else if (is_name("not") && is_name("in", 1)) {
        at_ += 2;
        op = "not in";
      } else {
        break;
      }
      if (!compare) compare = make(Kind::kCompare, std::move(first));
      compare->operators.push_back(std::move(op));
      compare->operands.push_back(parse_sum());
    }
    return compare ? std::move(compare) : std::move(first);
  }

  template <class Next>
  ExpressionPtr parse_binary(std::initializer_list<std::string_view> ops, const Next& next) {
    ExpressionPtr left = next();
    for (int n = 0; is(Token::Kind::kOperator) && std::find(ops.begin(), ops.end(), token().text) != ops.end(); ++n) {
      limit(n);
      const std::string op = tokens_[at_++].text;
      left = make(Kind::kBinary, std::move(left), next());
      left->name = op;
    }
    return left;
  }
  ExpressionPtr parse_sum() {
    return parse_binary({"+", "-"}, [&] { return parse_concat(); });
  }
  ExpressionPtr parse_concat() {
    ExpressionPtr first = parse_product();
    if (!is_operator("~")) return first;
    ExpressionPtr concat = make(Kind::kConcat, std::move(first));
    while (take_operator("~")) concat->operands.push_back(parse_product());
    return concat;
  }
  ExpressionPtr parse_product() {
    return parse_binary({"*", "/", "//", "%"}, [&] { return parse_power(); });
  }
  ExpressionPtr parse_power() {
    return parse_binary({"**"}, [&] { return parse_unary(true); });
  }

  ExpressionPtr parse_unary(bool with_filter) {
    const Nesting nesting(*this);
    ExpressionPtr node;
    if (take_operator("-")) {
      node = make(Kind::kNegative, parse_unary(false));
    } else if (take_operator("+")) {
      node = make(Kind::kPositive, parse_unary(false));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    if (with_filter) node = parse_filters(std::move(node));
    return node;
  }

  ExpressionPtr constant(Value value) const {
    ExpressionPtr node = make(Kind::kConstant);
    node->constant = std::move(value);
    return node;
  }

  ExpressionPtr parse_primary() {
    const Token& first = token();
    switch (first.kind) {
      case Token::Kind::kName: {
        ++at_;
        if (first.text == "true" || first.text == "True") return constant(true);
        if (first.text == "false" || first.text == "False") return constant(false);
        if (first.text == "none" || first.text == "None") return constant(Value::none());
        uses_.caller |= first.text == "caller";
        uses_.varargs |= first.text == "varargs";
        uses_.kwargs |= first.text == "kwargs";
        ExpressionPtr node = make(Kind::kName);
        node->name = first.text;
        return node;
      }
      case Token::Kind::kString: {
        std::string text;
        while (is(Token::Kind::kString)) text += tokens_[at_++].text;
        return constant(Value::string(std::move(text)));
      }
      case Token::Kind::kInt:
        ++at_;
        return constant(first.integer);
      case Token::Kind::kFloat:
        ++at_;
        return constant(first.number);
      default:
        break;
    }
    if (take_operator("(")) {
      ExpressionPtr node = parse_tuple(/*with_choice=*/true, {}, /*in_parentheses=*/true);
      expect_operator(")");
      return node;
    }
    if (take_operator("[")) {
      ExpressionPtr list = make(Kind::kList);
      while (!is_operator("]")) {
        if (!list->operands.empty()) expect_operator(",");
        if (is_operator("]")) break;
        list->operands.push_back(parse_expression());
      }
      expect_operator("]");
      return list;
    }
    if (take_operator("{")) {
      ExpressionPtr dict = make(Kind::kDict);
      while (!is_operator("}")) {
        if (!dict->operands.empty()) expect_operator(",");
        if (is_operator("}")) break;
        dict->operands.push_back(parse_expression());
        expect_operator(":");
        dict->operands.push_back(parse_expression());
      }
      expect_operator("}");
      return dict;
    }
    fail(fmt::format("unexpected {}", describe()));
  }

  ExpressionPtr parse_postfix(ExpressionPtr node) {
    for (int n = 0;; ++n) {
      limit(n);
      if (take_operator(".")) {
        if (is(Token::Kind::kInt)) {
          const int64_t index = tokens_[at_++].integer;
          node = make(Kind::kItem, std::move(node), constant(index));
        } else {
          std::string name = expect_any_name();
          node = make(Kind::kAttribute, std::move(node));
          node->name = std::move(name);
        }
      } else if (take_operator("[")) {
        node = parse_subscript(std::move(node));
      } else if (is_operator("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr node) {
    const auto at_end = [&] { return is_operator("]") || is_operator(","); };
    ExpressionPtr begin;
    if (!is_operator(":")) {
      ExpressionPtr index = parse_expression();
      if (!is_operator(":")) {
        if (is_operator(",")) {
          ExpressionPtr tuple = make(Kind::kTuple, std::move(index));
          while (take_operator(",")) tuple->operands.push_back(parse_expression());
          index = std::move(tuple);
        }
        expect_operator("]");
        return make(Kind::kItem, std::move(node), std::move(index));
      }
      begin = std::move(index);
    }
    expect_operator(":");
    ExpressionPtr end, step;
    if (!at_end() && !is_operator(":")) end = parse_expression();
    if (take_operator(":") && !at_end()) step = parse_expression();
    expect_operator("]");
    return make(Kind::kSlice, std::move(node), std::move(begin), std::move(end), std::move(step));
  }

  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_operator("(");
    bool is_first = true;
    while (!is_operator(")")) {
      if (!std::exchange(is_first, false)) {
        expect_operator(",");
        if (is_operator(")")) break;
      }
      const auto ensure = [&](bool allowed) {
        if (!allowed) fail("arguments in a wrong order");
      };
      if (take_operator("*")) {
        ensure(!arguments.positional_rest && !arguments.named_rest);
        arguments.positional_rest = parse_expression();
      } else if (take_operator("**")) {
        ensure(!arguments.named_rest);
        arguments.named_rest = parse_expression();
      } else if (is(Token::Kind::kName) && is_operator("=", 1)) {
        ensure(!arguments.named_rest);
        std::string name = token().text;
        at_ += 2;
        arguments.named.emplace_back(std::move(name), parse_expression());
      } else {
        ensure(!arguments.positional_rest && !arguments.named_rest && arguments.named.empty());
        arguments.positional.push_back(parse_expression());
      }
    }
    expect_operator(")");
    return arguments;
  }

  ExpressionPtr parse_call(ExpressionPtr node) {
    ExpressionPtr call = make(Kind::kCall, std::move(node));
    call->arguments = parse_arguments();
    return call;
  }

  ExpressionPtr parse_filters(ExpressionPtr node) {
    for (int n = 0;; ++n) {
      limit(n);
      if (is_operator("|")) {
        node = parse_filter(std::move(node), /*behind_pipe=*/false);
      } else if (is_name("is")) {
        node = parse_test(std::move(node));
      } else if (is_operator("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  // A chain of filters; behind_pipe: the first one's pipe is not written.
  ExpressionPtr parse_filter(ExpressionPtr node, bool behind_pipe) {
    for (int n = 0; std::exchange(behind_pipe, false) || take_operator("|"); ++n) {
      limit(n);
      std::string name = expect_any_name();
      while (take_operator(".")) name += "." + expect_any_name();
      ExpressionPtr filter = make(Kind::kFilter);
      filter->operands.push_back(std::move(node));
      if (is_operator("(")) filter->arguments = parse_arguments();
      if (!is_conditional_ && !has_filter(name)) fail(fmt::format("no filter named '{}'", printable(name)));
      filter->name = std::move(name);
      node = std::move(filter);
    }
    return node;
  }

  ExpressionPtr parse_test(ExpressionPtr node) {
    ++at_;
    const bool is_negated = take_name("not");
    std::string name = expect_any_name();
    while (take_operator(".")) name += "." + expect_any_name();
    ExpressionPtr test = make(Kind::kTest, std::move(node));
    if (!is_conditional_ && !has_test(name)) fail(fmt::format("no test named '{}'", printable(name)));
    test->name = std::move(name);
    if (is_operator("(")) {
      test->arguments = parse_arguments();
    } else if (takes_argument()) {
      if (is_name("is")) fail("tests cannot be chained with 'is'");
      test->arguments.positional.push_back(parse_postfix(parse_primary()));
    }
    return is_negated ? make(Kind::kNot, std::move(test)) : std::move(test);
  }
  [[nodiscard]] bool takes_argument() const {
    switch (token().kind) {
      case Token::Kind::kName:
        return !is_name("else") && !is_name("or") && !is_name("and");
      case Token::Kind::kString:
      case Token::Kind::kInt:
      case Token::Kind::kFloat:
        return true;
      default:
        return is_operator("[") || is_operator("{");
    }
  }

  struct Uses {
    bool caller = false, varargs = false, kwargs = false;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  bool is_conditional_ = false;  // in a branch: an unknown filter is an error only when it is reached
  Uses uses_;
};

}  // namespace

Body parse_template(std::string_view source) {
  return Parser(source).run();
}

}  // namespace foretoken::jinja
