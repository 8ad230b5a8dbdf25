#include "format/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "format/checkpoint_internal.h"
#include "format/error.h"
#include "format/run_directory.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPlanFile = "qat_plan.json";
constexpr const char* kTensorFile = "model.safetensors";
constexpr int64_t kPieceElements = int64_t{1}
                                   << 20;  // converted at a time, so that memory does not grow with the tensor

int64_t cols_of(const TensorInfo& info) { return info.shape.back(); }
int64_t rows_of(const TensorInfo& info) { return info.shape.size() == 2 ? info.shape[0] : 1; }

// Resolves count < 0 ("to the end") and checks the range.
int64_t checked_rows(const TensorInfo& info, int64_t row, int64_t count) {
  const int64_t rows = rows_of(info);
  QAT_CHECK(row >= 0 && row <= rows && count <= rows - row);
  return count < 0 ? rows - row : count;
}

// Calls work(first, count) for pieces of rows.
template <class Work>
void for_pieces(int64_t rows, int64_t cols, Work work) {
  const int64_t step = std::max<int64_t>(1, kPieceElements / cols);
  for (int64_t row = 0; row < rows; row += step) work(row, std::min(step, rows - row));
}

// Finds a table entry under whatever prefix the file uses. nullptr: not there.
const TensorView* find_in(const Safetensors& file, const std::string& canonical) {
  for (const std::string& name : hf_name_candidates(canonical))
    if (const TensorView* view = file.find(name)) return view;
  return nullptr;
}

// The view cut to the shape the model has. The multimodal Gemma 3 checkpoints carry 64 rows of embedding that no token
// uses.
TensorView fit_to_table(const TensorView& view, const TensorInfo& info, Arch arch, const std::string& file) {
  const std::string where = file + ": tensor " + printable(view.name);
  if (!is_float(view.dtype)) fail(where, ": expected F32, F16, BF16 or F64, found ", dtype_name(view.dtype));
  if (view.shape == info.shape) return view;
  TensorView cut = view;
  const bool padded_vocabulary = info.role == Role::token_embedding && arch == Arch::gemma3 && view.shape.size() == 2 &&
                                 view.shape[0] > info.shape[0] && view.shape[1] == info.shape[1];
  if (!padded_vocabulary) fail(where, ": expected shape ", shape_text(info.shape), ", found ", shape_text(view.shape));
  cut.shape = info.shape;
  cut.bytes = view.bytes.subspan(0, *tensor_bytes(view.dtype, info.shape));
  return cut;
}

// The safetensors entries that hold one tensor on its grid, in the order in which the file has them.
std::vector<TensorSpec> stored_tensors(const TensorInfo& info, DType grid) {
  if (!has_codes(grid)) return {{info.name, grid, info.shape}};
  QAT_CHECK(info.shape.size() == 2);
  const int64_t rows = rows_of(info), cols = cols_of(info);
  std::vector<TensorSpec> specs;
  if (grid == DType::Q4_0) {
    specs.push_back({info.name + ".codes", DType::U8, {rows, cols / 2}});
  } else {
    specs.push_back({info.name + ".codes", DType::I8, {rows, cols}});
  }
  specs.push_back({info.name + ".scales", DType::F16, {rows, cols / dtype_info(grid).block_size}});
  if (grid == DType::Q6_K) specs.push_back({info.name + ".sub_scales", DType::I8, {rows, cols / 16}});
  return specs;
}

// What the plan file says, checked: every tensor of the table has a grid that its rows can be stored on.
std::map<std::string, DType> read_grids(const std::string& file, const std::vector<TensorInfo>& table) {
  std::map<std::string, DType> grids = resolved_plan_from_json(read_file(file), file);
  for (const TensorInfo& info : table) {
    const auto it = grids.find(info.name);
    if (it == grids.end()) fail(file, ": expected a grid for tensor ", info.name, ", found none");
    const DTypeInfo& grid = dtype_info(it->second);
    if (!is_grid(grid.id)) fail(file, ": tensor ", info.name, ": ", grid.name, " is not a grid that can be stored");
    if (cols_of(info) % grid.block_size != 0 || (has_codes(grid.id) && info.shape.size() != 2))
      fail(file, ": tensor ", info.name, ": expected a matrix with rows of a multiple of ", grid.block_size, " for ",
           grid.name, ", found shape ", shape_text(info.shape));
  }
  if (grids.size() > table.size())
    for (const auto& [name, grid] : grids)
      if (std::none_of(table.begin(), table.end(), [&, n = name](const TensorInfo& info) { return info.name == n; }))
        fail(file, ": tensor ", printable(name), " is not part of the model in config.json");
  return grids;
}

// Rows [row, row + count) of a stored tensor.
template <class T>
void copy_rows(const TensorView& view, int64_t row, int64_t count, std::vector<T>* out) {
  const int64_t per_row = view.shape[1];
  out->resize(static_cast<size_t>(count * per_row));
  if (!out->empty())
    std::memcpy(out->data(), view.bytes.data() + static_cast<size_t>(row * per_row) * sizeof(T),
                out->size() * sizeof(T));
}

bool is_mobile_directory(const std::string& directory) {
  const std::string config = directory + "/config.json";
  std::error_code ignored;
  return fs::exists(config, ignored) && is_mobile_config(read_file(config, kMaxConfigBytes));
}

// Who names the directory of a training run means what it holds.
void fail_if_run(const std::string& directory) {
  if (!is_run(directory)) return;
  std::string results;
  for (const std::string& result : run_results(directory)) results += (results.empty() ? "" : " or ") + result;
  if (!results.empty()) fail(directory, ": this is a run of qat train: name its result, ", results);
}

// The directory, if it holds float weights.
const std::string& without_codes(const std::string& directory) {
  if (is_mobile_directory(directory))
    fail(directory, ": expected float weights, found a checkpoint already quantized in the mobile schema");
  std::error_code ignored;
  if (fs::exists(directory + "/" + kPlanFile, ignored))
    fail(directory, ": expected float weights, found a checkpoint already quantized (", kPlanFile, ")");
  if (fs::is_regular_file(directory, ignored))
    fail(directory, ": expected the directory of a Hugging Face checkpoint, found a file");
  if (!fs::exists(directory + "/config.json", ignored)) fail_if_run(directory);
  return directory;
}

}  // namespace

bool is_float(DType type) {
  return type == DType::F32 || type == DType::F16 || type == DType::BF16 || type == DType::F64;
}

std::set<std::string> expected_names(const ModelConfig& config) {
  ModelConfig unshared = config;
  unshared.tied = false;
  unshared.kv_shared_layers = 0;
  for (size_t i = 0; i < unshared.layers.size(); ++i) {
    unshared.layers[i].kv_source = static_cast<int64_t>(i);
    unshared.layers[i].k_eq_v = false;
  }
  std::set<std::string> names;
  for (const TensorInfo& info : tensor_table(unshared))
    for (const std::string& name : hf_name_candidates(info.name)) names.insert(name);
  return names;
}

void note_ignored(const Safetensors& file, const std::set<std::string>& expected, std::vector<std::string>* notices) {
  size_t towers = 0, unknown = 0;
  std::string examples;
  for (const TensorView& view : file.tensors()) {
    if (expected.count(view.name) != 0) continue;
    if (is_tower_tensor(view.name)) {
      ++towers;
    } else if (++unknown <= 3) {
      examples += (unknown == 1 ? "" : ", ") + printable(view.name);
    }
  }
  if (towers > 0) notices->push_back("ignored " + std::to_string(towers) + " tensors of vision and audio towers");
  if (unknown > 0)
    notices->push_back("ignored " + std::to_string(unknown) + " unknown tensors: " + examples +
                       (unknown > 3 ? ", ..." : ""));
}

FloatCheckpoint::FloatCheckpoint(const std::string& directory)
    : directory_(without_codes(directory)),
      config_(model_config_from_hf(directory, &notices_)),
      table_(tensor_table(config_)),
      file_(std::make_unique<Safetensors>(directory)) {
  file_->advise_huge_pages();
  for (const TensorInfo& info : table_) {
    const TensorView* view = find_in(*file_, info.name);
    if (view == nullptr)
      fail(directory, ": expected tensor ", info.name, " of shape ", shape_text(info.shape), ", found none");
    by_name_.emplace(info.name, fit_to_table(*view, info, config_.arch, directory));
  }
  note_ignored(*file_, expected_names(config_), &notices_);
}

const TensorView& FloatCheckpoint::tensor(const TensorInfo& info) const {
  const auto it = by_name_.find(info.name);
  QAT_CHECK(it != by_name_.end());
  return it->second;
}

void FloatCheckpoint::read_rows(const TensorInfo& info, int64_t row, int64_t count, float* out) const {
  count = checked_rows(info, row, count);
  to_floats(tensor(info), row * cols_of(info), count * cols_of(info), out, directory_);
}

std::vector<float> FloatCheckpoint::read(const TensorInfo& info) const { return to_floats(tensor(info), directory_); }

std::map<std::string, DType> FloatCheckpoint::dtypes() const {
  std::map<std::string, DType> types;
  for (const auto& [name, view] : by_name_) types[name] = view.dtype == DType::F64 ? DType::F32 : view.dtype;
  return types;
}

QuantizedCheckpoint::QuantizedCheckpoint(const std::string& directory)
    : directory_(directory),
      config_(model_config_from_hf(directory)),
      table_(tensor_table(config_)),
      grids_(read_grids(directory + "/" + kPlanFile, table_)),
      file_(std::make_unique<Safetensors>(directory)) {
  for (const TensorInfo& info : table_) {
    for (const TensorSpec& spec : stored_tensors(info, grid(info))) {
      const TensorView& view = file_->at(spec.name);
      if (view.dtype != spec.dtype || view.shape != spec.shape)
        fail(directory, ": tensor ", spec.name, ": expected ", dtype_name(spec.dtype), " ", shape_text(spec.shape),
             ", found ", dtype_name(view.dtype), " ", shape_text(view.shape));
    }
  }
}

DType QuantizedCheckpoint::grid(const TensorInfo& info) const {
  const auto it = grids_.find(info.name);
  QAT_CHECK(it != grids_.end());
  return it->second;
}

std::string QuantizedCheckpoint::plan_json() const { return read_file(directory_ + "/" + kPlanFile); }

void QuantizedCheckpoint::read_blocks(const TensorInfo& info, int64_t row, int64_t count, uint8_t* out) const {
  count = checked_rows(info, row, count);
  const DType type = grid(info);
  const int64_t cols = cols_of(info);
  const size_t stride = row_bytes(type, cols);
  if (!has_codes(type)) {
    const Span<const uint8_t> bytes = file_->at(info.name).bytes;
    if (count > 0)
      std::memcpy(out, bytes.data() + static_cast<size_t>(row) * stride, static_cast<size_t>(count) * stride);
    return;
  }
  const TensorView& codes = file_->at(info.name + ".codes");
  const TensorView& scales = file_->at(info.name + ".scales");
  CodedRows coded;
  coded.grid = type;
  coded.cols = cols;
  std::vector<uint8_t> packed;
  const auto check_codes = [&](const std::string& name, const std::vector<int8_t>& found, int least, int most) {
    for (const int8_t code : found)
      if (code < least || code > most)
        fail(directory_, ": tensor ", name, ": expected codes from ", least, " to ", most, ", found ",
             static_cast<int>(code));
  };
  for_pieces(count, cols, [&](int64_t first, int64_t rows) {
    coded.rows = rows;
    if (type == DType::Q4_0) {
      copy_rows(codes, row + first, rows, &packed);
      coded.codes.resize(static_cast<size_t>(rows * cols));
      unpack_int4(packed.data(), rows, cols, coded.codes.data());
    } else {
      copy_rows(codes, row + first, rows, &coded.codes);
    }
    copy_rows(scales, row + first, rows, &coded.scales);
    if (type == DType::Q6_K) {
      copy_rows(file_->at(info.name + ".sub_scales"), row + first, rows, &coded.sub_scales);
      check_codes(codes.name, coded.codes, -32, 31);
    }
    if (type == DType::Q2_0) check_codes(codes.name, coded.codes, -1, 2);
    pack_rows(coded, out + static_cast<size_t>(first) * stride);
  });
}

struct QuantizedCheckpointWriter::State {
  State(const std::string& path, const std::vector<TensorInfo>& tensors) : directory(path, kPlanFile), table(tensors) {}

  // Rows of a coded grid: codes go to the file, scales wait until the tensor's codes are complete.
  void append_coded(DType grid, const uint8_t* blocks, int64_t rows, int64_t cols) {
    const CodedRows coded = unpack_rows(grid, blocks, rows, cols);
    if (grid == DType::Q4_0) {
      std::vector<uint8_t> packed(static_cast<size_t>(rows * cols / 2));
      pack_int4(coded.codes.data(), rows, cols, packed.data());
      file->append(packed.data(), packed.size());
    } else {
      file->append(coded.codes.data(), coded.codes.size());
    }
    scales.insert(scales.end(), coded.scales.begin(), coded.scales.end());
    sub_scales.insert(sub_scales.end(), coded.sub_scales.begin(), coded.sub_scales.end());
  }

  void finish_tensor() {
    file->append(scales.data(), scales.size() * sizeof(uint16_t));
    file->append(sub_scales.data(), sub_scales.size());
    scales.clear();
    sub_scales.clear();
    rows_done = 0;
    ++current;
  }

  AtomicDirectory directory;
  std::vector<TensorInfo> table;
  std::vector<DType> grids;  // of the table's tensors
  std::unique_ptr<SafetensorsWriter> file;
  size_t current = 0;     // tensor being written
  int64_t rows_done = 0;  // of it
  std::vector<uint16_t> scales;
  std::vector<int8_t> sub_scales;
};

QuantizedCheckpointWriter::QuantizedCheckpointWriter(const std::string& directory, const std::string& source_directory,
                                                     const std::vector<TensorInfo>& table, const Plan& plan,
                                                     const std::map<std::string, PlanEntry>& resolved)
    : state_(std::make_unique<State>(directory, table)) {
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : table) {
    const auto it = resolved.find(info.name);
    QAT_CHECK(it != resolved.end());
    state_->grids.push_back(it->second.grid);
    for (TensorSpec& spec : stored_tensors(info, it->second.grid)) specs.push_back(std::move(spec));
  }
  copy_model_files(source_directory, state_->directory.path());
  write_file(state_->directory.path() + "/" + kPlanFile, plan_to_json(plan, resolved));
  state_->file = std::make_unique<SafetensorsWriter>(state_->directory.path() + "/" + kTensorFile, specs);
}

QuantizedCheckpointWriter::~QuantizedCheckpointWriter() = default;

void QuantizedCheckpointWriter::append_rows(const TensorInfo& info, const uint8_t* blocks, int64_t rows) {
  State& s = *state_;
  QAT_CHECK(s.current < s.table.size() && info.name == s.table[s.current].name);
  QAT_CHECK(rows >= 0 && rows <= rows_of(info) - s.rows_done);
  const DType grid = s.grids[s.current];
  const int64_t cols = cols_of(info);
  const size_t stride = row_bytes(grid, cols);
  for_pieces(rows, cols, [&](int64_t first, int64_t count) {
    const uint8_t* piece = blocks + static_cast<size_t>(first) * stride;
    if (has_codes(grid)) {
      s.append_coded(grid, piece, count, cols);
    } else {
      s.file->append(piece, static_cast<size_t>(count) * stride);
    }
  });
  s.rows_done += rows;
  if (s.rows_done == rows_of(info)) s.finish_tensor();
}

void QuantizedCheckpointWriter::commit() {
  QAT_CHECK(state_->current == state_->table.size());
  state_->file->commit();
  state_->directory.commit();
}

void copy_model_files(const std::string& from, const std::string& to) {
  static const std::set<std::string> kNames = {
      "config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
      "merges.txt"};
  std::error_code error, ignored;
  for (const auto& entry : fs::directory_iterator(from, error)) {
    const std::string name = entry.path().filename().string();
    const bool travels =
        kNames.count(name) != 0 || name.rfind("tokenizer", 0) == 0 || name.rfind("chat_template", 0) == 0;
    if (travels && entry.is_regular_file(ignored)) copy_file_atomic(entry.path().string(), to + "/" + name);
  }
  if (error) fail(from, ": cannot list this directory: ", error.message());
}

ModelKind detect_model_kind(const std::string& path) {
  constexpr const char* kLookedFor =
      ": expected a GGUF file, a directory with config.json and safetensors, or a quantized checkpoint (qat_plan.json)";
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    if (fs::exists(path + "/" + kPlanFile, ignored)) return ModelKind::quantized_checkpoint;
    if (fs::exists(path + "/config.json", ignored))
      return is_mobile_directory(path) ? ModelKind::mobile : ModelKind::hf_directory;
    fail_if_run(path);
    fail(path, kLookedFor, ", found a directory without either");
  }
  if (!fs::exists(path, ignored)) fail(path, kLookedFor, ", found nothing");
  const MappedFile file(path);
  if (file.bytes().size() >= 4 && std::memcmp(file.bytes().data(), "GGUF", 4) == 0) return ModelKind::gguf;
  fail(path, kLookedFor, ", found a file of another format");
}

}  // namespace qat
