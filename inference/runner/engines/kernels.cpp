// Matrix products and attention for CPUs with AVX2 or AVX-512; `kernels.py` compiles, checks and calls this file.
//
// Needs no headers but the standard library's: it compiles in half a second. Matrices are row-major and dense, floats
// are 32 bits. Panels are NR columns of a right factor, (inner, NR), which the inner loop reads in order.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, MR = 12;  // MR × NV accumulators leave room for NV columns and one factor
#else
constexpr int LANES = 8, MR = 6;
#endif
constexpr int NV = 2, NR = NV * LANES;
constexpr long COLUMNS = 128, INNER = 1024;  // of a block of the right factor: half of a second-level cache
constexpr long QUERIES = 2 * MR;             // at once in attention: their scores stay in the second-level cache
constexpr long PACKED_TOKENS = 4 * NR;       // that a thread packs at once for all

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* from) { return *(const Unaligned*)from; }
inline void store(float* to, Vector value) { *(Unaligned*)to = value; }
inline Vector splat(float value) { return value - Vector{}; }

struct Bfloat16 {
  uint16_t bits;
};
inline float widen(float value) { return value; }
inline float widen(Bfloat16 value) {
  uint32_t bits = (uint32_t)value.bits << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
inline void narrow(float* to, float value) { *to = value; }
inline void narrow(Bfloat16* to, float value) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  to->bits = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rows of c, (M, NR) with a stride, get (or are increased by) a (M, inner) times a panel.
template <int M>
inline void multiply_rows(const float* a, long a_stride, const float* panel, long inner, float* c, long c_stride, bool adds) {
  Vector sums[M][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sums[i][j] = adds ? load(c + i * c_stride + j * LANES) : Vector{};
  for (long p = 0; p < inner; p++) {
    Vector right[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) right[j] = *(const Vector*)(panel + p * NR + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      Vector left = splat(a[i * a_stride + p]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) store(c + i * c_stride + j * LANES, sums[i][j]);
}

template <int M>
inline void multiply_some(int& rows, const float*& a, long a_stride, const float* panel, long inner, float*& c, long c_stride, bool adds) {
  for (; rows >= M; rows -= M, a += M * a_stride, c += M * c_stride)
    multiply_rows<M>(a, a_stride, panel, inner, c, c_stride, adds);
}

// As `multiply_rows`, for up to MR rows.
inline void multiply_tile(int rows, const float* a, long a_stride, const float* panel, long inner, float* c, long c_stride, bool adds) {
  multiply_some<MR>(rows, a, a_stride, panel, inner, c, c_stride, adds);
  multiply_some<MR / 2>(rows, a, a_stride, panel, inner, c, c_stride, adds);
  multiply_some<2>(rows, a, a_stride, panel, inner, c, c_stride, adds);
  multiply_some<1>(rows, a, a_stride, panel, inner, c, c_stride, adds);
}

#if !defined(__has_builtin)
#define __has_builtin(name) 0
#endif
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE __builtin_shufflevector
#else  // GCC before 12
#define SHUFFLE(one, other, ...) __builtin_shuffle(one, other, Integers{__VA_ARGS__})
#endif

template <int SIZE, int... LANE>
inline void transpose_step(Vector* rows, std::integer_sequence<int, LANE...>) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) {
    if (i & SIZE) continue;
    Vector one = rows[i], other = rows[i + SIZE];
    rows[i] = SHUFFLE(one, other, (LANE & SIZE ? LANE - SIZE + LANES : LANE)...);
    rows[i + SIZE] = SHUFFLE(one, other, (LANE & SIZE ? LANE + LANES : LANE + SIZE)...);
  }
}

template <int SIZE>
inline void transpose_step(Vector* rows) {
  transpose_step<SIZE>(rows, std::make_integer_sequence<int, LANES>());
}

// LANES × LANES numbers.
inline void transpose(const float* from, long from_stride, float* to, long to_stride) {
  Vector rows[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) rows[i] = load(from + i * from_stride);
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
#if defined(__AVX512F__)
  transpose_step<8>(rows);
#endif
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) store(to + i * to_stride, rows[i]);
}

inline Vector exponential(Vector x) {  // Cephes' polynomial; 0 below -87
  Integers is_tiny = x < splat(-87.f);
  x = is_tiny ? splat(0.f) : x;
  Vector shifted = x * splat(1.44269504f) + splat(12582912.f);
  Vector power = shifted - splat(12582912.f);
  Vector rest = x - power * splat(0.693359375f) + power * splat(2.12194440e-4f);
  Vector sum = splat(1.9875691500e-4f);
  for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    sum = sum * rest + splat(factor);
  sum = sum * (rest * rest) + rest + splat(1.f);
  return is_tiny ? splat(0.f) : (Vector)((Integers)sum + ((Integers)shifted << 23));
}

inline Vector gelu(Vector x) {  // by the error function: Abramowitz and Stegun 7.1.26, wrong by 1.5e-7 at most
  Vector size = x < splat(0.f) ? -x : x;
  size = size * splat(0.70710678f);
  Vector t = splat(1.f) / (splat(1.f) + splat(0.3275911f) * size);
  Vector sum = splat(1.061405429f);
  for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) sum = sum * t + splat(factor);
  Vector half = splat(0.5f) * sum * t * exponential(-size * size);  // (1 - erf) / 2
  return x * (x < splat(0.f) ? half : splat(1.f) - half);
}

inline float greatest(Vector v) {
  float result = v[0];
  for (int i = 1; i < LANES; i++) result = std::max(result, v[i]);
  return result;
}

inline float total(Vector v) {
  float result = 0;
  for (int i = 0; i < LANES; i++) result += v[i];
  return result;
}

// A row of scores becomes exponentials of their distances from the greatest; returns the sum. `count`: a multiple of NR.
inline float exponentiate(float* row, long count) {
  Vector m[2] = {splat(-3e38f), splat(-3e38f)};
  for (long i = 0; i < count; i += 2 * LANES)
    for (int j = 0; j < 2; j++) {
      Vector x = load(row + i + j * LANES);
      m[j] = m[j] > x ? m[j] : x;
    }
  Vector most = splat(greatest(m[0] > m[1] ? m[0] : m[1]));
  Vector sums[2] = {};
  for (long i = 0; i < count; i += 2 * LANES)
    for (int j = 0; j < 2; j++) {
      Vector x = exponential(load(row + i + j * LANES) - most);
      store(row + i + j * LANES, x);
      sums[j] += x;
    }
  return total(sums[0] + sums[1]);
}

// Numbers from 0 to `count` that threads take in turn.
struct Work {
  std::atomic<long> next{0};
  long count;
  long scratch_floats;
  std::atomic<bool> has_failed{false};
  virtual void compute(long number, float* scratch) = 0;
  virtual ~Work() = default;
};

float* allocate(long floats) {
  size_t bytes = (floats * sizeof(float) + 4095) / 4096 * 4096;
  return (float*)aligned_alloc(4096, std::max<size_t>(bytes, 4096));
}

void take(void* argument) {
  Work& work = *(Work*)argument;
  float* scratch = allocate(work.scratch_floats);
  if (scratch == nullptr) {
    work.has_failed = true;
    return;
  }
  for (long number; (number = work.next++) < work.count;) work.compute(number, scratch);
  free(scratch);
}

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel: torch's own threads

int run(Work& work, unsigned threads, Parallel parallel) {
  if (threads > 1 && parallel != nullptr)
    parallel(take, &work, (unsigned)std::min<long>(threads, work.count), 0);
  else
    take(&work);
  return work.has_failed ? 1 : 0;
}

long round_up(long value, long step) { return (value + step - 1) / step * step; }

enum Activation { NONE, GELU, RELU };

// y (rows, columns) = activation(x (rows, inner) · weightᵀ (inner, columns) + bias + other)
struct Product : Work {
  const float *x, *weight, *bias, *other;
  long rows, columns, inner;
  int activation;
  float* y;
  long row_blocks, block_rows;

  void split(unsigned threads) {
    long column_blocks = (columns + COLUMNS - 1) / COLUMNS;
    row_blocks = threads == 1 ? 1 : std::max(1L, std::min(rows / (8 * MR), 4 * threads / column_blocks));
    block_rows = round_up((rows + row_blocks - 1) / row_blocks, MR);
    count = column_blocks * row_blocks;
    scratch_floats = COLUMNS * std::min(INNER, inner);
  }

  void compute(long number, float* panels) override {
    long first_column = number / row_blocks * COLUMNS, width = std::min(COLUMNS, columns - first_column);
    long first_row = number % row_blocks * block_rows, last_row = std::min(rows, first_row + block_rows);
    for (long start = 0; start < inner; start += INNER) {
      long depth = std::min(INNER, inner - start);
      pack(first_column, width, start, depth, panels);
      for (long i = first_row; i < last_row; i += MR)
        for (long j = 0; j < width; j += NR) {
          int some = (int)std::min<long>(MR, last_row - i);
          float* to = y + i * columns + first_column + j;
          multiply_tile(some, x + i * inner + start, inner, panels + j * depth, depth, to, columns, start > 0);
          if (start + depth == inner) finish(some, i, first_column + j);
        }
    }
  }

  void pack(long first_column, long width, long start, long depth, float* panels) {
    for (long j = 0; j < width; j += NR)
      for (long p = 0; p < depth; p += LANES)
        for (int part = 0; part < NR; part += LANES)
          transpose(weight + (first_column + j + part) * inner + start + p, inner, panels + j * depth + p * NR + part, NR);
  }

  void finish(int some, long row, long column) {
    for (int i = 0; i < some; i++)
      for (int j = 0; j < NR; j += LANES) {
        long place = (row + i) * columns + column + j;
        Vector value = load(y + place);
        if (bias != nullptr) value += load(bias + column + j);
        if (other != nullptr) value += load(other + place);
        if (activation == GELU) value = gelu(value);
        if (activation == RELU) value = value > splat(0.f) ? value : splat(0.f);
        store(y + place, value);
      }
  }
};

// mixed (tokens, all_heads, size) of some heads, from projections (tokens, 3, all_heads, size): queries, keys, values.
// bias: (heads, tokens, tokens), added to the scores.
//
// One thread takes head by head, whose packed keys and values stay in its cache. Several threads pack those of all heads
// together, then take blocks of queries: a call has few heads, but 40 blocks of each.
template <typename Number>
struct Attention : Work {
  const Number *projections, *bias;
  Number* mixed;
  long tokens, all_heads, size, first_head, heads, padded;
  float* shared = nullptr;  // packed keys and values of each head
  std::vector<std::atomic<long>> packed_parts;

  int run(unsigned threads, Parallel parallel) {
    padded = round_up(tokens, NR);
    if (threads == 1 || parallel == nullptr) {
      count = heads;
      scratch_floats = packed_floats() + block_floats();
      return ::run(*this, 1, nullptr);
    }
    shared = allocate(heads * packed_floats());
    if (shared == nullptr) return 1;
    packed_parts = std::vector<std::atomic<long>>(heads);
    count = heads * (packs() + blocks());
    scratch_floats = block_floats();
    int status = ::run(*this, threads, parallel);
    free(shared);
    return status;
  }

  long packed_floats() const { return 2 * padded * size; }
  long block_floats() const { return QUERIES * (size + padded + LANES) + MR * size; }
  long packs() const { return (padded + PACKED_TOKENS - 1) / PACKED_TOKENS; }
  long blocks() const { return (tokens + QUERIES - 1) / QUERIES; }

  void compute(long number, float* scratch) override {
    if (shared == nullptr) {
      pack(number, 0, padded, scratch);
      for (long first = 0; first < tokens; first += QUERIES) attend(number, first, scratch, scratch + packed_floats());
    } else if (number < heads * packs()) {
      long head = number / packs(), first = number % packs() * PACKED_TOKENS;
      pack(head, first, std::min(padded, first + PACKED_TOKENS), shared + head * packed_floats());
      packed_parts[head]++;
    } else {
      long block = number - heads * packs(), head = block / blocks();
      while (packed_parts[head] < packs()) std::this_thread::yield();  // by threads that took their numbers before
      attend(head, block % blocks() * QUERIES, shared + head * packed_floats(), scratch);
    }
  }

  // Keys become panels of (size, NR tokens), values panels of (tokens, NR numbers); tokens beyond the last are 0.
  // Those from `first` to `last`, multiples of NR.
  void pack(long head, long first, long last, float* keys) {
    long stride = 3 * all_heads * size;
    const Number* key = projections + (all_heads + first_head + head) * size;
    const Number* value = key + all_heads * size;
    float *values = keys + padded * size, block[LANES * LANES];
    for (long token = first; token < last; token += LANES)
      for (long start = 0; start < size; start += LANES) {
        for (int i = 0; i < LANES; i++)
          for (int j = 0; j < LANES; j++)
            block[i * LANES + j] = token + i < tokens ? widen(key[(token + i) * stride + start + j]) : 0.f;
        transpose(block, LANES, keys + token / NR * NR * size + start * NR + token % NR, NR);
      }
    for (long start = 0; start < size; start += NR)
      for (long token = first; token < last; token++)
        for (int j = 0; j < NR; j++)
          values[start * padded + token * NR + j] = token < tokens ? widen(value[token * stride + start + j]) : 0.f;
  }

  void attend(long head, long first, const float* keys, float* queries) {
    long stride = 3 * all_heads * size, score_stride = padded + LANES;  // not a power of two: rows share no cache set
    int some = (int)std::min(QUERIES, tokens - first);
    const Number* query = projections + first * stride + (first_head + head) * size;
    const float* values = keys + padded * size;
    float *scores = queries + QUERIES * size, *sums = scores + QUERIES * score_stride;
    for (int i = 0; i < some; i++) {
      const Number* added = bias + (head * tokens + first + i) * tokens;
      float* row = scores + i * score_stride;
      for (long j = 0; j < size; j++) queries[i * size + j] = widen(query[i * stride + j]);
      for (long j = 0; j < tokens; j++) row[j] = widen(added[j]);
      for (long j = tokens; j < padded; j++) row[j] = -INFINITY;
    }
    for (long key = 0; key < padded; key += NR)
      for (int i = 0; i < some; i += MR)
        multiply_tile(std::min(MR, some - i), queries + i * size, size, keys + key * size, size,
                      scores + i * score_stride + key, score_stride, true);
    for (int i = 0; i < some; i += MR) {
      int part = std::min(MR, some - i);
      float scale[MR];
      for (int r = 0; r < part; r++) scale[r] = 1.f / exponentiate(scores + (i + r) * score_stride, padded);
      for (long start = 0; start < size; start += NR)
        multiply_tile(part, scores + i * score_stride, score_stride, values + start * padded, padded, sums + start, size, false);
      for (int r = 0; r < part; r++)
        for (long j = 0; j < size; j++)
          narrow(mixed + ((first + i + r) * all_heads + first_head + head) * size + j, sums[r * size + j] * scale[r]);
    }
  }
};

template <typename Number>
int attend(const void* projections, const void* bias, long tokens, long all_heads, long size, long first_head, long heads,
           void* mixed, unsigned threads, Parallel parallel) {
  Attention<Number> work;
  work.projections = (const Number*)projections, work.bias = (const Number*)bias, work.mixed = (Number*)mixed;
  work.tokens = tokens, work.all_heads = all_heads, work.size = size, work.first_head = first_head, work.heads = heads;
  return work.run(threads, parallel);
}

template <typename Number>
void fill(std::vector<Number>& v, int step, int range, float scale) {
  for (size_t i = 0; i < v.size(); i++) narrow(&v[i], ((long)(i * step) % range - range / 2) * scale);
}

void run_in_turn(void (*function)(void*), void* argument, unsigned threads, unsigned) {  // as `Parallel`
  for (unsigned i = 0; i < threads; i++) function(argument);
}

constexpr double BFLOAT16_SHARE = 1e-3;  // of an error in bfloat16 that counts

template <typename Number>
double find_attention_error(unsigned threads, Parallel parallel) {
  constexpr long tokens = 45, heads = 2, size = 32;
  std::vector<Number> projections(tokens * 3 * heads * size), bias(heads * tokens * tokens), mixed(tokens * heads * size);
  fill(projections, 7, 41, 0.03f), fill(bias, 5, 23, 0.1f);
  for (long i = 0; i < heads * tokens; i++) narrow(&bias[i * tokens + tokens - 1], -INFINITY);
  if (parallel == nullptr) parallel = run_in_turn;
  if (attend<Number>(projections.data(), bias.data(), tokens, heads, size, 0, heads, mixed.data(), threads, parallel)) return 1e9;
  double worst = 0;
  for (long head = 0; head < heads; head++)
    for (long i = 0; i < tokens; i++) {
      std::vector<double> weights(tokens);
      double all = 0;
      const Number* query = &projections[(i * 3 * heads + head) * size];
      for (long j = 0; j < tokens; j++) {
        const Number* key = &projections[((j * 3 + 1) * heads + head) * size];
        double score = widen(bias[(head * tokens + i) * tokens + j]);
        for (long p = 0; p < size; p++) score += (double)widen(query[p]) * widen(key[p]);
        all += weights[j] = std::exp(score);
      }
      for (long p = 0; p < size; p++) {
        double sum = 0;
        for (long j = 0; j < tokens; j++) sum += weights[j] / all * widen(projections[((j * 3 + 2) * heads + head) * size + p]);
        double error = std::fabs(widen(mixed[(i * heads + head) * size + p]) - sum);
        worst = error <= worst ? worst : error;  // a NaN is kept
      }
    }
  return worst;
}

}  // namespace

extern "C" {

// columns: a multiple of 32; inner: of 16. bias and other may be null. Returns 0, or 1 without memory.
int multiply(const float* x, const float* weight, const float* bias, const float* other, long rows, long columns, long inner,
             int activation, float* y, unsigned threads, Parallel parallel) {
  Product work;
  work.x = x, work.weight = weight, work.bias = bias, work.other = other, work.y = y;
  work.rows = rows, work.columns = columns, work.inner = inner, work.activation = activation;
  work.split(threads);
  return run(work, threads, parallel);
}

// size: a multiple of 32. Returns 0, or 1 without memory.
int attend_float32(const void* projections, const void* bias, long tokens, long all_heads, long size, long first_head,
                   long heads, void* mixed, unsigned threads, Parallel parallel) {
  return attend<float>(projections, bias, tokens, all_heads, size, first_head, heads, mixed, threads, parallel);
}

int attend_bfloat16(const void* projections, const void* bias, long tokens, long all_heads, long size, long first_head,
                    long heads, void* mixed, unsigned threads, Parallel parallel) {
  return attend<Bfloat16>(projections, bias, tokens, all_heads, size, first_head, heads, mixed, threads, parallel);
}

// The largest error of small products and a small attention, against plain loops, by one thread and by `threads`.
double find_error(unsigned threads, Parallel parallel) {
  constexpr long rows = 29, columns = 160, inner = 1040;
  std::vector<float> x(rows * inner), w(columns * inner), b(columns), other(rows * columns), y(rows * columns);
  fill(x, 7, 31, 0.02f), fill(w, 5, 37, 0.01f), fill(b, 3, 11, 0.1f), fill(other, 5, 17, 0.1f);
  double worst = 0;
  auto compare = [&](double found, double wanted) {
    double error = std::fabs(found - wanted);
    worst = error <= worst ? worst : error;  // a NaN is kept
  };
  for (int activation : {NONE, GELU, RELU}) {
    const float* added = activation == GELU ? nullptr : other.data();
    if (multiply(x.data(), w.data(), b.data(), added, rows, columns, inner, activation, y.data(), 1, nullptr)) return 1e9;
    for (long i = 0; i < rows; i++)
      for (long j = 0; j < columns; j++) {
        double sum = b[j] + (added ? added[i * columns + j] : 0.);
        for (long p = 0; p < inner; p++) sum += (double)x[i * inner + p] * w[j * inner + p];
        if (activation == GELU) sum = sum * (1 + std::erf(sum * std::sqrt(0.5))) / 2;
        if (activation == RELU) sum = std::max(sum, 0.);
        compare(y[i * columns + j], sum);
      }
  }
  for (unsigned some : {1u, threads}) {
    compare(find_attention_error<float>(some, parallel), 0);
    compare(find_attention_error<Bfloat16>(some, parallel) * BFLOAT16_SHARE, 0);
  }
  return worst;
}

}  // extern "C"
