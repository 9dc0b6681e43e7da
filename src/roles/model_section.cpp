#include "roles/model_section.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace chorale {
namespace {

constexpr int max_layers = 10'000, max_heads = 65'536;

// The numbers of config.json that attention depends on.
struct Shape {
  int layers = 0, query_heads = 0, kv_heads = 0, head_dim = 0, hidden_size = 0;
  DType dtype = DType::float32;
  bool sliding_window = false;  // config.json asks for a mask that is not plainly causal
};

Status read_dtype(const ConfigNode& node, DType& dtype) {
  std::string text;
  CHORALE_RETURN_IF_ERROR(node.read(text));
  if (!node.exists()) return {};
  const auto parsed = parse_dtype(text);
  if (!parsed) return node.error(parsed.status().message());
  dtype = *parsed;
  return {};
}

Status read_shape(const ConfigNode& node, Shape& shape) {
  CHORALE_RETURN_IF_ERROR(node["num_hidden_layers"].read(shape.layers, 1, max_layers));
  CHORALE_RETURN_IF_ERROR(node["num_attention_heads"].read(shape.query_heads, 1, max_heads));
  CHORALE_RETURN_IF_ERROR(node["num_key_value_heads"].read(shape.kv_heads, 1, max_heads));
  CHORALE_RETURN_IF_ERROR(node["head_dim"].read(shape.head_dim, 1, Problem::max_head_dim));
  return node["hidden_size"].read(shape.hidden_size, 1);
}

Status read_config_json(const ConfigNode& path, Shape& shape) {
  std::string folder;
  CHORALE_RETURN_IF_ERROR(path.read(folder));
  auto config = Config::load(folder + "/config.json");  // JSON is YAML
  if (!config) return config.status().with_context(path.source());
  const ConfigNode root = config->root();
  CHORALE_RETURN_IF_ERROR(read_dtype(root["torch_dtype"], shape.dtype));
  CHORALE_RETURN_IF_ERROR(read_dtype(root["dtype"], shape.dtype));  // its newer name
  CHORALE_RETURN_IF_ERROR(root["use_sliding_window"].read(shape.sliding_window));
  return read_shape(root, shape);
}

// What the file leaves out, by Hugging Face's rules, and what is still missing then.
Status complete_shape(const ConfigNode& section, Shape& shape) {
  const auto missing = [&](std::string_view key) {
    return Status::not_found(section.error(fmt::format("{} is required and not given", key)).message());
  };
  if (shape.layers == 0) return missing("num_hidden_layers");
  if (shape.query_heads == 0) return missing("num_attention_heads");
  if (shape.kv_heads == 0) shape.kv_heads = shape.query_heads;
  if (shape.query_heads % shape.kv_heads != 0)
    return section.error(fmt::format("num_attention_heads {}: must be a multiple of num_key_value_heads {}",
                                     shape.query_heads, shape.kv_heads));
  if (shape.head_dim != 0) return {};
  if (shape.hidden_size == 0) return missing("head_dim (or hidden_size)");
  if (shape.hidden_size % shape.query_heads != 0)
    return section.error(
        fmt::format("hidden_size {}: must be a multiple of num_attention_heads {} if head_dim is not given",
                    shape.hidden_size, shape.query_heads));
  shape.head_dim = shape.hidden_size / shape.query_heads;
  return {};
}

// A table is a list of numbers, or a list of such lists of one length. One number with a point makes it a
// float table.
struct Numbers {
  std::vector<ConfigNode> nodes;
  bool is_float = false;

  Status append(const ConfigNode& list) {
    CHORALE_ASSIGN_OR_RETURN(const auto items, list.items());
    for (const ConfigNode& item : items) {
      std::string text;
      CHORALE_RETURN_IF_ERROR(item.read(text));
      is_float = is_float || text.find_first_of(".eE") != std::string::npos;
      nodes.push_back(item);
    }
    return {};
  }
  template <class T>
  Result<std::vector<T>> read() const {
    std::vector<T> values(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      CHORALE_RETURN_IF_ERROR(nodes[i].required());
      CHORALE_RETURN_IF_ERROR(nodes[i].read(values[i]));
    }
    return values;
  }
};

Result<Table> read_table(const ConfigNode& node) {
  CHORALE_ASSIGN_OR_RETURN(const auto items, node.items());
  if (items.empty()) return node.error("a table has at least one number");
  Numbers numbers;
  const bool is_2d = items.front().is_list();
  if (!is_2d) CHORALE_RETURN_IF_ERROR(numbers.append(node));
  std::size_t columns = 0;
  for (const ConfigNode& row : items) {
    if (!is_2d) break;
    const std::size_t before = numbers.nodes.size();
    CHORALE_RETURN_IF_ERROR(numbers.append(row));
    const std::size_t length = numbers.nodes.size() - before;
    if (before == 0) columns = length;
    if (length != columns || length == 0)
      return row.error(
          fmt::format("has {} numbers: every row of a table has as many as the first, at least 1", length));
  }
  const auto rows = static_cast<std::int64_t>(items.size()), width = static_cast<std::int64_t>(columns);
  if (numbers.is_float) {
    CHORALE_ASSIGN_OR_RETURN(auto values, numbers.read<float>());
    if (is_2d) return Table::floats_2d(node.key(), rows, width, std::move(values));
    return Table::floats(node.key(), std::move(values));
  }
  CHORALE_ASSIGN_OR_RETURN(auto values, numbers.read<std::int32_t>());
  if (is_2d) return Table::integers_2d(node.key(), rows, width, std::move(values));
  return Table::integers(node.key(), std::move(values));
}

template <class Program>
Status read_program(const ConfigNode& node, std::string text, std::span<const Table> tables,
                    Program& program) {
  CHORALE_RETURN_IF_ERROR(node.read(text));
  if (text.empty() && !node.exists()) return {};
  auto parsed = Program::parse(text, tables);
  if (!parsed) return node.error(parsed.status().message());
  program = std::move(*parsed);
  return {};
}

}  // namespace

Result<ModelSection> read_model_section(const ConfigNode& section) {
  Shape shape;
  // The rest of a model's config.json means nothing to attention; whoever builds the model reads it.
  constexpr std::array others{"vocab_size",   "intermediate_size",   "rms_norm_eps",
                              "rope_theta",   "tie_word_embeddings", "max_position_embeddings",
                              "bos_token_id", "eos_token_id"};
  for (const char* key : others) (void)section[key];

  ModelSection model;
  Problem& problem = model.problem;
  std::vector<Table> tables;
  CHORALE_ASSIGN_OR_RETURN(const auto table_nodes, section["tables"].entries());
  for (const ConfigNode& node : table_nodes) {
    CHORALE_ASSIGN_OR_RETURN(Table table, read_table(node));
    tables.push_back(std::move(table));
  }
  CHORALE_RETURN_IF_ERROR(read_program(section["mask"], "causal", tables, problem.mask));
  CHORALE_RETURN_IF_ERROR(read_program(section["score"], "", tables, problem.score));
  CHORALE_RETURN_IF_ERROR(section["scale"].read(problem.scale, 0));
  CHORALE_RETURN_IF_ERROR(section["sinks"].read(problem.sinks));
  CHORALE_RETURN_IF_ERROR(section["value_head_dim"].read(problem.value_head_dim, 1, Problem::max_head_dim));

  const ConfigNode path = section["path"];
  const Status folder = path.exists() ? read_config_json(path, shape) : Status::ok();
  CHORALE_RETURN_IF_ERROR(read_shape(section, shape));
  CHORALE_RETURN_IF_ERROR(read_dtype(section["compute_dtype"], shape.dtype));
  CHORALE_RETURN_IF_ERROR(
      folder);  // told last: a folder may be elsewhere, a mistake in the section never is right
  CHORALE_RETURN_IF_ERROR(complete_shape(section, shape));
  if (shape.sliding_window && !section["mask"].exists())
    return path.error(
        "its config.json says use_sliding_window: say which mask is meant with the key mask beside it");

  problem.query_heads = shape.query_heads;
  problem.kv_heads = shape.kv_heads;
  problem.head_dim = shape.head_dim;
  problem.dtype = shape.dtype;
  model.layers = shape.layers;
  if (const Status status = problem.validate(); !status.is_ok()) return section.error(status.message());
  return model;
}

}  // namespace chorale
