// A program on rows, with its weights, and the order in which rows are taken through it.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "rows.hpp"

namespace {

constexpr int CHUNK = 32;  // rows that a thread takes through a phase at once

enum Op { GATHER, ADD, AFFINE, NORM, LINEAR, GELU, TANH, RELU, ATTEND, FIRST, MEAN, UNIT_LENGTH };
enum Index { IDS, POSITIONS, TYPES };
enum Kind { INT8_MATRIX, FP32_MATRIX, VECTOR, INT8_TABLE, FP32_TABLE };

// What a program is made of, and what the numbers after `to`, the register that is written, are:
//   GATHER       -, which index, table                     rows of a table
//   ADD          a, b
//   AFFINE       a, factors or -1, shifts or -1            x * factors + shifts
//   NORM         a, gain, bias; value: epsilon             LayerNorm
//   LINEAR       a, matrix, bias or -1, activation (0 or its operation), residual or -1; value: of int8, the least
//                value that stands for a row's largest
//   ATTEND       queries, keys, values, heads; value: scale
//   FIRST, MEAN  a                                         of each text, of its tokens
//   GELU, TANH, RELU  a
//   UNIT_LENGTH  a; value: the least length
struct Instruction {
  int32_t op, to, a, b, c, d, e;
  float value;
};

struct Given {
  int32_t kind, rows, columns;
  const void* values;
  const float* scales;
};

template <typename T>
struct Aligned {
  T* data = nullptr;
  size_t size = 0;
  Aligned() = default;
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  Aligned(Aligned&& other) noexcept : data(other.data), size(other.size) {
    other.data = nullptr;
    other.size = 0;
  }
  ~Aligned() { release(); }
  void release() {
    if (data) ::operator delete[](data, std::align_val_t(64));
    data = nullptr;
    size = 0;
  }
  T* at_least(size_t count) {
    if (count > size) {
      release();
      data = static_cast<T*>(::operator new[](count * sizeof(T), std::align_val_t(64)));
      std::memset(data, 0, count * sizeof(T));
      size = count;
    }
    return data;
  }
};

// A matrix as panels of PANEL vectors of columns: within a panel, inputs in groups (of 4 as int8, of 1 as fp32), and
// for each group the columns side by side. int8 values are stored with 128 added: the processor multiplies unsigned
// with signed. Sessions share weights.
struct Weight {
  const int kind, rows, columns;
  Aligned<uint8_t> levels;  // of a matrix or table of int8
  Aligned<float> values;    // of one of fp32, or the scales of one of int8

  explicit Weight(const Given& given) : kind(given.kind), rows(given.rows), columns(given.columns) {
    const int padded = rounded_up(given.columns, LANES), vectors = padded / LANES;
    if (given.kind == VECTOR) {
      std::memcpy(values.at_least(padded), given.values, given.columns * sizeof(float));
    } else if (given.kind == INT8_TABLE) {
      const size_t size = size_t(given.rows) * given.columns;
      std::memcpy(levels.at_least(size + LANES), given.values, size);
      std::memcpy(values.at_least(given.rows), given.scales, given.rows * sizeof(float));
    } else if (given.kind == FP32_TABLE) {
      const size_t size = size_t(given.rows) * given.columns;
      std::memcpy(values.at_least(size + LANES), given.values, size * sizeof(float));
    } else if (given.kind == FP32_MATRIX) {
      const float* from = static_cast<const float*>(given.values);
      float* to = values.at_least(size_t(given.rows) * padded);
      for (int panel = 0; panel < vectors; panel += PANEL) {
        const int wide = std::min(PANEL, vectors - panel) * LANES;
        for (int k = 0; k < given.rows; k++, to += wide)
          for (int c = 0; c < wide; c++) {
            const int column = panel * LANES + c;
            to[c] = column < given.columns ? from[size_t(k) * given.columns + column] : 0.0f;
          }
      }
    } else {
      const int8_t* from = static_cast<const int8_t*>(given.values);
      const int inputs = rounded_up(given.rows, LANES);
      uint8_t* to = levels.at_least(size_t(inputs) * padded);
      for (int panel = 0; panel < vectors; panel += PANEL) {
        const int wide = std::min(PANEL, vectors - panel) * LANES;
        for (int k = 0; k < inputs; k += 4)
          for (int c = 0; c < wide; c++)
            for (int j = 0; j < 4; j++) {
              const int column = panel * LANES + c;
              const bool there = column < given.columns && k + j < given.rows;
              *to++ = uint8_t(128 + (there ? from[size_t(k + j) * given.columns + column] : 0));
            }
      }
      float* scales = values.at_least(padded);
      for (int c = 0; c < given.columns; c++) scales[c] = given.scales[c] / 127.0f;
    }
  }
};
using Shared = std::shared_ptr<const Weight>;

struct Register {
  int width = 0, padded = 0;
  bool of_texts = false;  // one row for each text
  bool shared = false;    // read in a later phase than it is written, or the result
  bool keys = false;      // stored by column, for an attention
};

struct Phase {
  size_t first, last;  // instructions
  bool of_texts;
};

// Texts that are taken through the model together.
struct Texts {
  std::vector<int> lengths, starts, key_starts;
  std::vector<const int64_t*> tokens, kinds;
  std::vector<int> text_of, position_of;  // of rows
  int rows = 0, key_rows = 0;
};

struct Scratch {  // of a thread
  Aligned<float> local, scores, transposed;
  Aligned<int8_t> quantized;
  int32_t sums[CHUNK];
  float scales[CHUNK];
};

struct Space {  // of texts on their way
  std::vector<Aligned<float>> registers;
};

class Model {
 public:
  Model(const Instruction* code, int count, const int32_t* widths, const int32_t* of_texts, int registers,
        const Shared* const* weights, int given)
      : code_(code, code + count), registers_(registers) {
    for (int i = 0; i < registers; i++) {
      registers_[i].width = widths[i];
      registers_[i].padded = rounded_up(widths[i], LANES);
      registers_[i].of_texts = of_texts[i];
      widest_ = std::max(widest_, registers_[i].padded);
    }
    for (int i = 0; i < given; i++) weights_.push_back(*weights[i]);
    divide();
  }

  void lay_out(Texts& texts) const {
    texts.rows = texts.key_rows = 0;
    texts.text_of.clear();
    texts.position_of.clear();
    texts.starts.clear();
    texts.key_starts.clear();
    for (size_t t = 0; t < texts.lengths.size(); t++) {
      texts.starts.push_back(texts.rows);
      texts.key_starts.push_back(texts.key_rows);
      for (int i = 0; i < texts.lengths[t]; i++) {
        texts.text_of.push_back(int(t));
        texts.position_of.push_back(i);
      }
      texts.rows += texts.lengths[t];
      texts.key_rows += rounded_up(texts.lengths[t], LANES);
    }
  }

  // Tell whether tables have a row for every token of a text.
  bool knows(int length, const int64_t* tokens, const int64_t* kinds) const {
    for (const Instruction& it : code_) {
      if (it.op != GATHER) continue;
      const int64_t rows = weights_[it.c]->rows;
      if (it.b == POSITIONS && length > rows) return false;
      const int64_t* indices = it.b == IDS ? tokens : it.b == TYPES ? kinds : nullptr;
      for (int i = 0; indices && i < length; i++)
        if (indices[i] < 0 || indices[i] >= rows) return false;
    }
    return true;
  }

  void make_room(const Texts& texts, Space& space) const {
    space.registers.resize(registers_.size());
    for (size_t i = 0; i < registers_.size(); i++) {
      const Register& r = registers_[i];
      if (!r.shared) continue;
      const size_t rows = r.of_texts ? texts.lengths.size() : r.keys ? texts.key_rows : texts.rows;
      space.registers[i].at_least(rows * r.padded + LANES);
    }
  }

  size_t phases() const { return phases_.size(); }
  const Register& result() const { return registers_[code_.back().to]; }
  int result_index() const { return code_.back().to; }

  // In how many parts several threads take a phase: by rows, at most CHUNK of them; few rows, those of texts, by
  // columns.
  int parts(size_t phase, const Texts& texts, int threads) const {
    if (phases_[phase].of_texts) return code_[phases_[phase].first].op == LINEAR ? threads : 1;
    return std::min(texts.rows, threads * ((texts.rows + threads * CHUNK - 1) / (threads * CHUNK)));
  }

  void run(size_t phase, int64_t part, int64_t parts, const Texts& texts, Space& space, Scratch& scratch) const {
    if (!phases_[phase].of_texts)
      return run(phase, texts, int(texts.rows * part / parts), int(texts.rows * (part + 1) / parts), 0, 1, space,
                 scratch);
    const int rows = int(texts.lengths.size());
    for (int first = 0; first < rows; first += CHUNK)
      run(phase, texts, first, std::min(rows, first + CHUNK), int(part), int(parts), space, scratch);
  }

 private:
  // Take rows first ... last of a phase through its instructions, at most CHUNK of them; of a product a part of
  // columns.
  void run(size_t phase, const Texts& texts, int first, int last, int part, int parts, Space& space,
           Scratch& scratch) const {
    const int rows = last - first;
    float* local = scratch.local.at_least(local_size_);
    int8_t* quantized = scratch.quantized.at_least(size_t(CHUNK) * rounded_up(widest_, 64));
    int quantized_from = -1;
    float quantized_least = 0.0f;
    auto place = [&](int index) -> float* {
      const Register& r = registers_[index];
      return r.shared ? space.registers[index].data + size_t(first) * r.padded : local + offsets_[index];
    };
    for (size_t i = phases_[phase].first; i < phases_[phase].last; i++) {
      const Instruction& it = code_[i];
      const Register& to = registers_[it.to];
      float* out = to.keys ? scratch.transposed.at_least(size_t(CHUNK) * widest_) : place(it.to);
      const int width = to.padded;
      const size_t count = size_t(rows) * width;
      if (it.to == quantized_from) quantized_from = -1;
      switch (it.op) {
        case GATHER:
          gather(it, texts, first, rows, out);
          break;
        case ADD:
          add(place(it.a), place(it.b), count, out);
          break;
        case AFFINE:
          for (int r = 0; r < rows; r++)
            shift(place(it.a) + size_t(r) * width, it.b < 0 ? nullptr : weights_[it.b]->values.data,
                  it.c < 0 ? nullptr : weights_[it.c]->values.data, width, out + size_t(r) * width);
          break;
        case NORM:
          for (int r = 0; r < rows; r++)
            normalize(place(it.a) + size_t(r) * width, weights_[it.b]->values.data, weights_[it.c]->values.data,
                      it.value, to.width, out + size_t(r) * width);
          break;
        case GELU:
          each(place(it.a), out, count, gelu);
          break;
        case TANH:
          each(place(it.a), out, count, tangent);
          break;
        case RELU:
          each(place(it.a), out, count, positive);
          break;
        case LINEAR: {
          const Register& from = registers_[it.a];
          const Weight& weight = *weights_[it.b];
          const float* bias = it.c < 0 ? nullptr : weights_[it.c]->values.data;
          const float* a = place(it.a);
          const int panels = (width + PANEL * LANES - 1) / (PANEL * LANES);
          const int begin = panels * part / parts * PANEL * LANES;
          const int end = std::min(width, panels * (part + 1) / parts * PANEL * LANES);
          if (weight.kind == INT8_MATRIX) {
            const int padded = rounded_up(from.width, LANES);
            if (quantized_from != it.a || quantized_least != it.value)
              for (int r = 0; r < rows; r++)
                scratch.sums[r] = quantize(a + size_t(r) * from.padded, from.width, padded, it.value,
                                           quantized + size_t(r) * padded, scratch.scales + r);
            quantized_from = it.a, quantized_least = it.value;
            multiply_int8(weight, bias, quantized, padded, scratch, rows, begin, end, out, width);
          } else {
            multiply_fp32(weight, bias, a, from.padded, rows, begin, end, out, width);
          }
          for (int r = 0; r < rows; r++) {
            float* row = out + size_t(r) * width + begin;
            if (it.d == GELU) each(row, row, end - begin, gelu);
            if (it.d == TANH) each(row, row, end - begin, tangent);
            if (it.d == RELU) each(row, row, end - begin, positive);
            if (it.e >= 0) add(row, place(it.e) + size_t(r) * width + begin, end - begin, row);
          }
          break;
        }
        case ATTEND:
          attend(it, texts, first, rows, space, place(it.a), out, scratch);
          break;
        case FIRST:
          for (int r = 0; r < rows; r++)
            std::memcpy(out + size_t(r) * width, space.registers[it.a].data + size_t(texts.starts[first + r]) * width,
                        width * sizeof(float));
          break;
        case MEAN:
          for (int r = 0; r < rows; r++)
            mean(texts, first + r, space.registers[it.a].data, width, out + size_t(r) * width);
          break;
        case UNIT_LENGTH:
          for (int r = 0; r < rows; r++)
            to_unit_length(place(it.a) + size_t(r) * width, width, it.value, out + size_t(r) * width);
          break;
      }
      if (to.keys) turn(texts, first, rows, out, width, space.registers[it.to].data);
    }
  }

  // Cut the program where rows need what was made of others, and say which registers live on beyond a cut.
  void divide() {
    std::vector<int> written(registers_.size(), -1);
    phases_.clear();
    for (size_t i = 0; i < code_.size(); i++) {
      const Instruction& it = code_[i];
      const bool of_texts = registers_[it.to].of_texts;
      const int now = int(phases_.size()) - 1;
      bool cut = phases_.empty() || of_texts || phases_.back().of_texts;  // what is of texts is parted by columns
      if (it.op == ATTEND) {
        cut = cut || written[it.b] == now || written[it.c] == now;
        registers_[it.b].keys = registers_[it.b].shared = registers_[it.c].shared = true;
      }
      if (it.op == MEAN || it.op == FIRST) {
        cut = cut || written[it.a] == now;
        registers_[it.a].shared = true;
      }
      if (cut) phases_.push_back({i, i, of_texts});
      const int phase = int(phases_.size()) - 1;
      for (int read : reads(it))
        if (written[read] != phase) registers_[read].shared = true;
      written[it.to] = phase;
      phases_.back().last = i + 1;
    }
    registers_[code_.back().to].shared = true;
    offsets_.assign(registers_.size(), 0);
    local_size_ = LANES;
    for (size_t i = 0; i < registers_.size(); i++) {
      offsets_[i] = local_size_;
      if (!registers_[i].shared) local_size_ += size_t(CHUNK) * registers_[i].padded;
    }
  }

  static std::vector<int> reads(const Instruction& it) {
    switch (it.op) {
      case GATHER:
        return {};
      case ADD:
        return {it.a, it.b};
      case LINEAR:
        return it.e < 0 ? std::vector<int>{it.a} : std::vector<int>{it.a, it.e};
      case ATTEND:
        return {it.a, it.b, it.c};
      default:
        return {it.a};
    }
  }

  void gather(const Instruction& it, const Texts& texts, int first, int rows, float* out) const {
    const Weight& table = *weights_[it.c];
    const int width = table.columns, padded = registers_[it.to].padded;
    for (int r = 0; r < rows; r++, out += padded) {
      const int text = texts.text_of[first + r], position = texts.position_of[first + r];
      int64_t index = position;
      if (it.b == IDS) index = texts.tokens[text][position];
      if (it.b == TYPES) index = texts.kinds[text] ? texts.kinds[text][position] : 0;
      if (table.kind == FP32_TABLE) {
        std::memcpy(out, table.values.data + index * width, width * sizeof(float));
        std::fill(out + width, out + padded, 0.0f);
        continue;
      }
      const __m512 scale = _mm512_set1_ps(table.values.data[index]);
      const uint8_t* levels = table.levels.data + index * width;
      for (int k = 0; k < width; k += LANES) {
        const __mmask16 kept = width - k >= LANES ? 0xffff : (1u << (width - k)) - 1;
        const __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(kept, levels + k));
        _mm512_storeu_ps(out + k, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), scale));
      }
    }
  }

  // Columns begin ... end, of which begin is that of a panel.
  static void multiply_int8(const Weight& weight, const float* bias, const int8_t* a, int stride,
                            const Scratch& scratch, int rows, int begin, int end, float* out, int width) {
    const int groups = rounded_up(weight.rows, LANES) / 4;
    const uint8_t* panel = weight.levels.data + size_t(groups) * begin * 4;
    for (int column = begin; column < end; column += PANEL * LANES) {
      const int vectors = std::min(PANEL, (end - column) / LANES);
      tiles(rows, vectors, [&]<int R, int Z>(int first) {
        product_int8<R, Z>(a + size_t(first) * stride, stride, panel, groups, scratch.sums + first,
                           scratch.scales + first, weight.values.data + column, bias ? bias + column : nullptr,
                           out + size_t(first) * width + column, width);
      });
      panel += size_t(groups) * vectors * 64;
    }
  }

  static void multiply_fp32(const Weight& weight, const float* bias, const float* a, int stride, int rows, int begin,
                            int end, float* out, int width) {
    const float* panel = weight.values.data + size_t(weight.rows) * begin;
    for (int column = begin; column < end; column += PANEL * LANES) {
      const int vectors = std::min(PANEL, (end - column) / LANES);
      tiles(rows, vectors, [&]<int R, int Z>(int first) {
        product_fp32<R, Z>(a + size_t(first) * stride, stride, panel, Z * LANES, weight.rows, 1.0f,
                           bias ? bias + column : nullptr, out + size_t(first) * width + column, width);
      });
      panel += size_t(weight.rows) * vectors * LANES;
    }
  }

  // Store keys (rows, width) as (width, tokens of the text, padded), up to 16 rows at once.
  static void turn(const Texts& texts, int first, int rows, const float* from, int width, float* to) {
    const __m512i steps = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(width));
    for (int r = 0; r < rows;) {
      const int text = texts.text_of[first + r], length = texts.lengths[text], tokens = rounded_up(length, LANES);
      const int position = texts.position_of[first + r], many = std::min({LANES, rows - r, length - position});
      const __mmask16 kept = many == LANES ? 0xffff : (1u << many) - 1;
      const float* column = from + size_t(r) * width;
      float* place = to + size_t(texts.key_starts[text]) * width + position;
      for (int k = 0; k < width; k++, column++, place += tokens)
        _mm512_mask_storeu_ps(place, kept, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), kept, steps, column, 4));
      r += many;
    }
  }

  void attend(const Instruction& it, const Texts& texts, int first, int rows, Space& space, const float* q, float* out,
              Scratch& scratch) const {
    const int width = registers_[it.a].padded, heads = it.d, size = registers_[it.a].width / heads;
    const bool of_texts = registers_[it.a].of_texts;
    for (int r = 0; r < rows;) {  // as many rows as are of one text
      const int text = of_texts ? first + r : texts.text_of[first + r];
      const int length = texts.lengths[text], tokens = rounded_up(length, LANES);
      const int many = of_texts ? 1 : std::min(rows - r, length - texts.position_of[first + r]);
      float* scores = scratch.scores.at_least(size_t(CHUNK) * tokens + LANES);
      const float* keys = space.registers[it.b].data + size_t(texts.key_starts[text]) * width;
      const float* values = space.registers[it.c].data + size_t(texts.starts[text]) * width;
      for (int head = 0; head < heads; head++) {
        const float* asked = q + size_t(r) * width + head * size;
        const float* key = keys + size_t(head) * size * tokens;
        for (int column = 0; column < tokens; column += PANEL * LANES)
          tiles(many, std::min(PANEL, (tokens - column) / LANES), [&]<int R, int Z>(int row) {
            product_fp32<R, Z>(asked + size_t(row) * width, width, key + column, tokens, size, it.value, nullptr,
                               scores + size_t(row) * tokens + column, tokens);
          });
        for (int row = 0; row < many; row++) softmax(scores + size_t(row) * tokens, length, tokens);
        for (int column = 0; column < size; column += PANEL * LANES)
          tiles(many, std::min(PANEL, (size - column) / LANES), [&]<int R, int Z>(int row) {
            product_fp32<R, Z>(scores + size_t(row) * tokens, tokens, values + head * size + column, width, length,
                               1.0f, nullptr, out + size_t(r + row) * width + head * size + column, width);
          });
      }
      r += many;
    }
  }

  static void softmax(float* row, int length, int padded) {
    const float none = -3.0e38f;
    for (int i = length; i < padded; i++) row[i] = none;
    __m512 most = _mm512_set1_ps(none);
    for (int i = 0; i < padded; i += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(row + i));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < padded; i += LANES) {
      const __mmask16 kept = length - i >= LANES ? 0xffff : (1u << (length - i)) - 1;
      const __m512 e = _mm512_maskz_mov_ps(kept, exponential(_mm512_sub_ps(_mm512_loadu_ps(row + i), most)));
      sum = _mm512_add_ps(sum, e);
      _mm512_storeu_ps(row + i, e);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int i = 0; i < padded; i += LANES) _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), factor));
  }

  static void mean(const Texts& texts, int text, const float* from, int width, float* out) {
    const float* start = from + size_t(texts.starts[text]) * width;
    const int length = texts.lengths[text];
    for (int k = 0; k < width; k += LANES) {
      __m512 sum = _mm512_setzero_ps();
      for (int t = 0; t < length; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(start + size_t(t) * width + k));
      _mm512_storeu_ps(out + k, _mm512_div_ps(sum, _mm512_set1_ps(float(length))));
    }
  }

  std::vector<Instruction> code_;
  std::vector<Register> registers_;
  std::vector<Shared> weights_;
  std::vector<Phase> phases_;
  std::vector<size_t> offsets_;
  size_t local_size_ = 0;
  int widest_ = 64;
};

}  // namespace
