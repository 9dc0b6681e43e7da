#include "implementations/conformance/cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>

namespace chorale::conformance {
namespace {

constexpr DType all_types[] = {DType::bfloat16, DType::float16, DType::float32};

using Lengths = std::vector<std::pair<std::int32_t, std::int32_t>>;  // (queries, keys)

// A feature changes a plain case. It runs last: heads and lengths are known.
struct Feature {
  std::string_view name;
  std::function<void(Case&)> apply;
  bool needs_positions = false;  // indexes a table by q: no more queries than keys
};

std::int32_t longest(const Case& test) {
  std::int32_t length = 1;
  for (const Sequence& s : test.sequences) length = std::max({length, s.keys, s.queries});
  return length;
}

Mask parsed_mask(std::string_view text, std::span<const Table> tables = {}) {
  return Mask::parse(text, tables).value();
}
Score parsed_score(std::string_view text, std::span<const Table> tables = {}) {
  return Score::parse(text, tables).value();
}

// Documents of 11 tokens; with `sequences` rows, each starting at another place.
Table documents(const Case& test) {
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < longest(test); ++i) ids.push_back(i / 11);
  return Table::integers("document", std::move(ids));
}
Table documents_2d(const Case& test) {
  std::vector<std::int32_t> ids;
  const auto rows = std::max<std::int64_t>(1, std::ssize(test.sequences));
  for (std::int32_t b = 0; b < rows; ++b) {
    for (std::int32_t i = 0; i < longest(test); ++i) ids.push_back((i + 3 * b) / 17);
  }
  return Table::integers_2d("document", rows, longest(test), std::move(ids)).value();
}
Table widths(int heads) {
  std::vector<std::int32_t> values;
  for (int h = 0; h < heads; ++h) values.push_back(1 + 5 * h);
  return Table::integers("width", std::move(values));
}
Table biases(const Case& test) {
  std::vector<float> values;
  for (std::int32_t k = 0; k < longest(test); ++k) values.push_back(0.25f * static_cast<float>(k % 7 - 3));
  return Table::floats("bias", std::move(values));
}

const std::vector<Feature>& features() {
  using namespace mask;
  static const std::vector<Feature> list{
      {"everything visible", [](Case&) {}},
      {"causal", [](Case& t) { t.problem.mask = causal(); }},
      {"window of 1", [](Case& t) { t.problem.mask = causal() && window(1); }},
      {"window of 2", [](Case& t) { t.problem.mask = causal() && window(2); }},
      {"window of 37", [](Case& t) { t.problem.mask = causal() && window(37); }},
      {"window left and right", [](Case& t) { t.problem.mask = window(5, 3); }},
      {"window right only", [](Case& t) { t.problem.mask = window(-1, 2); }},
      {"prefix-LM", [](Case& t) { t.problem.mask = prefix_lm(9); }},
      {"nothing visible", [](Case& t) { t.problem.mask = parsed_mask("k > 1000000"); }},
      {"every second row blind", [](Case& t) { t.problem.mask = parsed_mask("q % 2 == 0"); }},
      {"not causal", [](Case& t) { t.problem.mask = !causal(); }},
      {"general mask",
       [](Case& t) { t.problem.mask = parsed_mask("((q + k) % 3 != 1 and h % 2 == 0) or k < 4 or b == 1"); }},
      {"windows per head",
       [](Case& t) {
         const Table table = widths(t.problem.query_heads + 2);
         t.problem.first_query_head = 2;
         t.problem.mask = parsed_mask("k <= q and q - k < width[h]", std::span(&table, 1));
       }},
      {"documents",
       [](Case& t) {
         t.tables = {documents(t)};
         t.problem.mask = document(documents(t));
       },
       true},
      {"documents per sequence, causal",
       [](Case& t) {
         t.tables = {documents_2d(t)};
         t.problem.mask = document(documents_2d(t)) && causal();
       },
       true},
      {"ALiBi",
       [](Case& t) {
         t.problem.mask = causal();
         t.problem.score = score::alibi(score::alibi_slopes(t.problem.query_heads));
       }},
      {"softcap", [](Case& t) { t.problem.score = score::softcap(2); }},
      {"sinks",
       [](Case& t) {
         t.problem.sinks = true;
         t.problem.mask = causal() && window(8);
       }},
      {"sinks, nothing visible",
       [](Case& t) {
         t.problem.sinks = true;
         t.problem.mask = parsed_mask("k > 1000000");
       }},
      {"general score",
       [](Case& t) {
         t.tables = {biases(t)};
         t.problem.score =
             parsed_score("select(k % 2 == 0, score, 0.5 * score + score * score / 16) + bias[k]", t.tables);
       }},
      {"float8 keys and values",
       [](Case& t) {
         t.problem.kv_dtype = DType::float8_e4m3;
         t.problem.mask = causal() && window(37);
       }},
      {"all at once",
       [](Case& t) {
         t.tables = {documents_2d(t)};
         t.problem.sinks = true;
         t.problem.scale = 0.3f;
         t.problem.mask = document(documents_2d(t)) && causal() && window(12);
         t.problem.score = score::alibi(score::alibi_slopes(t.problem.query_heads)).then(score::softcap(20));
       },
       true},
  };
  return list;
}

struct Shape {
  std::string_view name;
  Lengths lengths;
};

std::vector<Shape> shapes(const Edges& edges) {
  const int t = edges.tile, c = edges.chunk;
  return {
      {"no sequences", {}},
      {"only empty ones", {{0, 0}, {0, 5}, {3, 0}}},
      {"around a tile",
       {{0, 0}, {1, 1}, {0, 5}, {3, 0}, {1, t}, {t, t}, {t - 1, t + 1}, {t + 1, t - 1}, {2, 2 * t + 1}}},
      {"around a chunk", {{1, c - 1}, {0, 0}, {3, c}, {2, c + 1}, {1, 1}, {1, 2 * c + 1}}},
      {"decode", {{1, 1}, {1, 7}, {1, t - 1}, {1, t}, {1, t + 1}, {1, 3 * t}}},
      {"self", {{t + 1, t + 1}, {5, 5}, {2 * t - 1, 2 * t - 1}}},
      {"cross", {{7, 2 * t + 2}, {2 * t + 2, 7}}},
  };
}

class Generator {
 public:
  Generator(const Edges& edges, std::uint64_t seed) : edges_(edges), random_(seed) {}

  // Everything that the caller does not go on to set is drawn.
  Case draw(std::string name, const Lengths& lengths) {
    Case test{.feature = std::move(name)};
    test.seed = random_();
    constexpr std::pair<int, int> heads[] = {{1, 1}, {2, 2}, {3, 1}, {4, 2}, {6, 2}};
    constexpr int dims[] = {1, 3, 8, 16, 17, 32, 64};
    std::tie(test.problem.query_heads, test.problem.kv_heads) = pick(heads);
    test.problem.head_dim = pick(dims);
    test.problem.value_head_dim = below(2) == 0 ? 0 : pick(dims);
    test.problem.dtype = pick(all_types);
    test.page_size = below(2) == 0 ? 0 : 1 << below(9);
    test.page_order = random_();
    constexpr Arrangement inputs[] = {Arrangement::contiguous, Arrangement::heads_first, Arrangement::padded,
                                      Arrangement::columns_first, Arrangement::misaligned};
    constexpr Arrangement outputs[] = {Arrangement::contiguous, Arrangement::heads_first, Arrangement::padded,
                                       Arrangement::misaligned};
    test.inputs = pick(inputs);
    test.outputs = pick(outputs);
    set_lengths(test, lengths);
    return test;
  }

  Case draw(const Feature& feature, const Shape& shape) {
    Lengths lengths = shape.lengths;
    if (feature.needs_positions) {
      for (auto& [queries, keys] : lengths) queries = std::min(queries, keys);
    }
    Case test = draw(fmt::format("{}, {}", feature.name, shape.name), lengths);
    feature.apply(test);
    return test;
  }

  static void set_lengths(Case& test, const Lengths& lengths) {
    test.sequences.clear();
    for (const auto& [queries, keys] : lengths)
      test.sequences.push_back({queries, keys, test.sequences.size()});
  }

  std::uint64_t below(std::uint64_t n) { return random_() % n; }

 private:
  template <class T, std::size_t n>
  T pick(const T (&list)[n]) {
    return list[below(n)];
  }
  Edges edges_;
  std::mt19937_64 random_;
};

// The mixed lengths that sweeps run on.
Lengths mixed(const Edges& edges) {
  const int t = edges.tile;
  return {{3, t + 3}, {1, 2 * t}, {9, 9}, {0, 4}, {5, 2}};
}

void sweep_dims(Generator& generator, const Edges& edges, std::vector<Case>& cases) {
  constexpr std::pair<int, int> dims[] = {{1, 1},     {2, 7},     {5, 3},     {15, 15},   {16, 16},
                                          {24, 40},   {31, 33},   {48, 48},   {63, 65},   {80, 80},
                                          {96, 96},   {112, 112}, {127, 129}, {128, 64},  {128, 128},
                                          {192, 128}, {200, 1},   {1, 256},   {255, 255}, {256, 256}};
  for (const auto& [head_dim, value_head_dim] : dims) {
    for (const DType dtype : all_types) {
      Case test = generator.draw(fmt::format("head_dim {} and {}", head_dim, value_head_dim), mixed(edges));
      test.problem.head_dim = head_dim;
      test.problem.value_head_dim = value_head_dim;
      test.problem.dtype = dtype;
      test.problem.mask = mask::causal();
      cases.push_back(std::move(test));
    }
  }
}

// Every dimension there is, on a few keys.
void sweep_all_dims(Generator& generator, std::vector<Case>& cases) {
  for (int dim = 1; dim <= Problem::max_head_dim; ++dim) {
    Case test = generator.draw(fmt::format("head_dim {}", dim), {{3, 5}, {1, 2}});
    test.problem.head_dim = dim;
    test.problem.value_head_dim = Problem::max_head_dim + 1 - dim;
    cases.push_back(std::move(test));
  }
}

void sweep_layouts(Generator& generator, const Edges& edges, std::vector<Case>& cases) {
  for (const bool shared : {false, true}) {
    for (int page_size = 1; page_size <= 256; page_size *= 2) {
      Case test = generator.draw("page size", mixed(edges));
      test.page_size = page_size;
      test.shared_pages = shared;
      test.problem.mask = mask::causal();
      cases.push_back(std::move(test));
    }
  }
  for (const int page_size : {0, 16}) {
    for (const Arrangement arrangement :
         {Arrangement::contiguous, Arrangement::heads_first, Arrangement::padded, Arrangement::columns_first,
          Arrangement::broadcast_heads, Arrangement::misaligned}) {
      for (const DType dtype : all_types) {
        Case test = generator.draw("arrangement", mixed(edges));
        test.page_size = page_size;
        test.inputs = arrangement;
        test.problem.dtype = dtype;
        test.problem.mask = mask::causal();
        cases.push_back(std::move(test));
      }
    }
  }
}

void sweep_fills(Generator& generator, const Edges& edges, std::span<const DType> types,
                 std::vector<Case>& cases,
                 std::initializer_list<Fill> fills = {Fill::zero_queries, Fill::unit_values,
                                                      Fill::dominant_key, Fill::large_scores,
                                                      Fill::nan_inside}) {
  for (const Fill fill : fills) {
    for (const DType dtype : types) {
      for (const bool causal : {false, true}) {
        Case test = generator.draw("fill", mixed(edges));
        test.fill = fill;
        test.problem.dtype = dtype;
        if (causal) test.problem.mask = mask::causal();
        cases.push_back(std::move(test));
      }
    }
  }
}

}  // namespace

Edges Edges::of(const Fingerprint& fingerprint) {
  Edges edges;
  for (const auto& part : fingerprint.parts) {
    if (part.name == "T") edges.tile = std::stoi(part.value);
    if (part.name == "C") edges.chunk = std::stoi(part.value);
  }
  return edges;
}

namespace {

// What a GPU's copy engine takes: 16 bytes at a time, the last dimension contiguous.
Case for_gpu(Case test, Generator& generator, int head_dim, int value_dim) {
  constexpr std::pair<int, int> heads[] = {{1, 1}, {2, 2}, {4, 2}, {8, 1}, {6, 2}};
  test.problem.head_dim = head_dim;
  test.problem.value_head_dim = value_dim;
  if (test.problem.dtype == DType::float32) test.problem.dtype = DType::bfloat16;
  // Features that tables depend on have been applied: only how many heads a KV head has may change.
  const bool is_free = test.problem.score.is_identity() && test.problem.first_query_head == 0;
  if (is_free)
    std::tie(test.problem.query_heads, test.problem.kv_heads) = heads[generator.below(std::size(heads))];
  const auto plain = [](Arrangement a) {
    return a == Arrangement::heads_first ? a : Arrangement::contiguous;
  };
  test.inputs = plain(test.inputs);
  test.outputs = plain(test.outputs);
  return test;
}

}  // namespace

std::vector<Case> gpu_cases(const Edges& edges, std::uint64_t seed) {
  Generator generator(edges, seed);
  std::vector<Case> cases;
  const auto add = [&](Case test, int head_dim = 128, int value_dim = 128) {
    cases.push_back(for_gpu(std::move(test), generator, head_dim, value_dim));
  };
  const std::vector<Shape> all_shapes = shapes(edges);
  // Each feature at one shape, going through them; and each shape with a causal mask.
  for (std::size_t i = 0; const Feature& feature : features())
    add(generator.draw(feature, all_shapes[2 + i++ % (all_shapes.size() - 2)]));
  for (const Shape& shape : all_shapes)
    for (const int page_size : {0, 16}) {
      Case test = generator.draw(features()[1], shape);
      test.page_size = page_size;
      add(std::move(test));
    }
  for (const auto& [head_dim, value_dim] :
       {std::pair(64, 64), {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 256}})
    for (const Shape& shape : {all_shapes[2], all_shapes[4]})
      add(generator.draw(features()[1], shape), head_dim, value_dim);
  std::vector<Case> rest;
  sweep_layouts(generator, edges, rest);
  sweep_fills(generator, edges, std::span(all_types).first(2), rest);
  sweep_fills(generator, edges, std::span(all_types).first(2), rest, {Fill::nan_queries});
  for (Case& test : rest)
    if (test.inputs != Arrangement::broadcast_heads) add(std::move(test));
  return cases;
}

std::vector<Case> fast_cases(const Edges& edges) {
  Generator generator(edges, 7);
  std::vector<Case> cases;
  for (const Feature& feature : features()) cases.push_back(generator.draw(feature, {"mixed", mixed(edges)}));
  sweep_fills(generator, edges, std::span(all_types).first(1), cases);
  sweep_fills(generator, edges, all_types, cases, {Fill::nan_queries});
  return cases;
}

std::vector<Case> full_cases(const Edges& edges, std::uint64_t seed) {
  Generator generator(edges, seed);
  std::vector<Case> cases;
  for (const Feature& feature : features()) {
    for (const Shape& shape : shapes(edges)) cases.push_back(generator.draw(feature, shape));
  }
  sweep_dims(generator, edges, cases);
  sweep_all_dims(generator, cases);
  sweep_layouts(generator, edges, cases);
  sweep_fills(generator, edges, all_types, cases);
  // Chunks in the middle of a long self-attention, where a prefill merges them on its way.
  for (const DType dtype : all_types) {
    Case longer = generator.draw("self-attention over chunks", {{edges.chunk + 1, edges.chunk + 1}});
    longer.problem.mask = mask::causal();
    longer.problem.head_dim = 16;
    longer.problem.dtype = dtype;
    cases.push_back(std::move(longer));
  }
  sweep_fills(generator, edges, all_types, cases, {Fill::nan_queries});
  // What is not finite in the midst of tiles of which each row sees some keys, and some rows none of these.
  for (const Fill fill : {Fill::nan_inside, Fill::nan_queries})
    for (const DType dtype : all_types) {
      const int t = edges.tile;
      Case holes = generator.draw("fill, holes", {{2 * t + 9, 3 * t + 5}, {5, 4 * t}, {t, t}});
      holes.fill = fill;
      holes.problem.dtype = dtype;
      holes.problem.mask = parsed_mask("(q + k) % 5 == 0");
      cases.push_back(std::move(holes));
    }
  return cases;
}

}  // namespace chorale::conformance
