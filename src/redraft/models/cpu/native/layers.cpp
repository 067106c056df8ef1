// Layers of a transformer for few positions on a CPU, where PyTorch's calls cost more than the arithmetic.
//
// Every number that belongs to a position is summed in an order that depends on nothing but the shape of the network:
// products over k = 0, 1, ..., and attention over the visible keys from left to right. It is the same, bit by bit,
// however many rows, positions and threads there are. These are plain loops over GCC's vector types. The build compiles
// this file once for each instruction set, and ``__init__.py`` loads the library that the machine can run.

#include <immintrin.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace {

#ifdef __AVX512F__
constexpr int W = 16, TALL = 12, WIDE = 4;  // floats of a register; rows of the largest tile (24 of 32 registers)
#else
constexpr int W = 8, TALL = 6, WIDE = 2;  // 12 of 16 registers
#endif
constexpr int PANEL = 2 * W, CHUNK = 4 * TALL, TOGETHER = 4;  // columns packed together; rows, and queries, of a task

typedef float Vec __attribute__((vector_size(W * 4)));
typedef float Unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(W * 4)));

inline Vec load(const float* p) { return *(const Unaligned*)p; }
inline Vec load(const int8_t* p) {
#ifdef __AVX512F__
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#endif
}
inline void store(float* p, Vec v) { *(Unaligned*)p = v; }
inline Vec all(float x) { return x - Vec{}; }

// (a_i + a_j where bit ``step`` of i is 0, b_i + b_j where it is 1), j = i ^ step: a level of two sums.
template <int step>
inline Vec halved(Vec a, Vec b) {
    Ints own, other;
    for (int i = 0; i < W; i++) other[i] = (own[i] = i & step ? i + W : i) ^ step;
    return __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
}

inline Vec sums(Vec* v) {  // lane i: the sum over all lanes of v[i]
    for (int i = 0; i < W / 2; i++) v[i] = halved<1>(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < W / 4; i++) v[i] = halved<2>(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < W / 8; i++) v[i] = halved<4>(v[2 * i], v[2 * i + 1]);
    return W == 16 ? halved<W / 2>(v[0], v[1]) : v[0];
}

inline Vec exponential(Vec x) {  // for x <= 88: 2^n p(r), r = x - n ln 2, p is Taylor's polynomial; 0 below -87
    const Vec least = all(-87.f), magic = all(12582912.f);  // adding the second rounds to an integer
    const Vec kept = x < least ? least : x, n = kept * 1.44269504f + magic - magic;
    const Vec r = kept - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = all(1 / 5040.f);
    for (float c : {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, .5f, 1.f, 1.f}) p = p * r + c;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return x < least ? Vec{} : p * (Vec)power;
}

struct Matrix {  // y = W x; the columns of W^T in panels [panels, in, PANEL], the last one filled up with zeros
    const void* data;
    const float *scale, *bias;  // of each column; scale: data are int8; null: data are float32, there is no bias
    int64_t in, out;
};

struct Layer {
    Matrix qkv, attention_out, gate_up, down;  // a panel of gate_up: W columns of gate, then W of up
    const float* gain;                         // [H + Hk, Dh] of the query and key norms; null: none
    int64_t local;
};

struct Visible {          // which keys the queries see: begin .. end, and of these
    const uint8_t* mask;  // [R or 1, Q or 1, end - begin], with strides; null: all
    int64_t mask_row, mask_query, begin, end, causal;
};

struct Pass {
    int64_t layers, dim, heads, key_heads, width, rows, queries, targets, table_row, slots, positions, threads, span;
    const Layer* layer;
    float *x, *out;               // [R Q, D], changed in place; [targets, D], the result
    const float* table;           // [R or 1, Q, Dh / 2, 2]: cos and sin
    float* const* pairs;          // of each layer [2, slots, Hk, positions, Dh]; null: attention within the request
    const int64_t *slot, *place;  // [R]; [R, Q] positions, -1 is padding
    const int64_t* target;        // [targets] rows of x; null: all
    float* const* kept;           // of each layer: where its output is copied; null: nowhere
    const Visible* visible;       // in layers with attention to all positions, and with local attention
    float *qkv, *attended, *inner, *scores;  // scratch; scores [threads, TOGETHER, span]
    double eps;
};

inline std::pair<int64_t, int64_t> share(int64_t count) {  // begin and end of this thread's part
    const int64_t id = omp_get_thread_num(), of = omp_get_num_threads();
    return {count * id / of, count * (id + 1) / of};
}

// Waiting threads spin for microseconds, then they yield: a sleeping thread would wake too late for such short stages.
class Barrier {
    std::atomic<int> arrived{0}, round{0};

public:
    void wait() {
        const int now = round.load();
        if (arrived.fetch_add(1) + 1 == omp_get_num_threads()) {
            arrived.store(0);
            round.store(now + 1);
        }
        for (int i = 0; round.load() == now; i++) i < 1000 ? _mm_pause() : (void)sched_yield();
    }
};

// out[m][n] = sum over k of a[m][k] b[k][n], for M rows and for N panels that are next to each other.
template <int M, int N, class T>
void tile(const float* a, int64_t depth, const void* panels, float* out) {
    const T* b = static_cast<const T*>(panels);
    Vec sum[M][2 * N];
#pragma GCC unroll 32
    for (int i = 0; i < M * 2 * N; i++) sum[i / (2 * N)][i % (2 * N)] = Vec{};
    for (int64_t k = 0; k < depth; k++) {
        Vec column[2 * N];
        for (int n = 0; n < 2 * N; n++) column[n] = load(b + (n / 2 * depth + k) * PANEL + n % 2 * W);
        // Fetched 32 rows early: hardware follows the one stream of a panel too slowly.
        for (int n = 0; n < 2 * N; n++) __builtin_prefetch(b + (n / 2 * depth + k + 32) * PANEL + n % 2 * W);
        for (int m = 0; m < M; m++)
            for (int n = 0; n < 2 * N; n++) sum[m][n] += a[m * depth + k] * column[n];
    }
#pragma GCC unroll 32
    for (int i = 0; i < M * 2 * N; i++) store(out + i * W, sum[i / (2 * N)][i % (2 * N)]);
}

using Tile = void (*)(const float*, int64_t, const void*, float*);

template <class T, int... M>
Tile tile_of(int64_t rows, int64_t panels, std::integer_sequence<int, M...>) {
    static constexpr Tile one[] = {tile<M + 1, 1, T>...};
    static constexpr Tile two[] = {tile<(M < TALL / 2 ? M + 1 : 1), 2, T>...};
    static constexpr Tile four[] = {tile<(M < TALL / 4 ? M + 1 : 1), 4, T>...};
    return (panels == 4 ? four : panels == 2 ? two : one)[rows - 1];
}

inline float inverse_rms(const float* x, int64_t size, double eps) {
    Vec squares[W] = {};
    for (int64_t i = 0; i < size; i += W) squares[0] += load(x + i) * load(x + i);
    return 1 / std::sqrt(sums(squares)[0] / size + float(eps));
}

// Call use(row, panel, sums [PANEL]) for this thread's part of W x, or if ``normed`` of W (x / rms(x)).
template <class Use>
void product(const float* x, int64_t rows, const Matrix& w, bool normed, double eps, Use use) {
    constexpr std::make_integer_sequence<int, TALL> heights;
    const int64_t panels = (w.out + PANEL - 1) / PANEL, chunks = (rows + CHUNK - 1) / CHUNK;
    alignas(64) float found[TALL * PANEL], factor[CHUNK];
    const auto [begin, end] = share(chunks * panels);
    for (int64_t task = begin, taken, known = -1; task < end; task += taken) {
        const int64_t chunk = task / panels, panel = task % panels, first = chunk * CHUNK;
        const int64_t height = std::min<int64_t>(rows - first, CHUNK), tiles = (height + TALL - 1) / TALL;
        for (int64_t m = 0; normed && chunk != known && m < height; m++)
            factor[m] = inverse_rms(x + (first + m) * w.in, w.in, eps);
        known = chunk;
        const int64_t left = std::min(end - task, panels - panel);
        taken = left >= 4 && height <= TALL / 4 ? 4 : left >= 2 && height <= TALL / 2 ? 2 : 1;
        for (int64_t number = 0; number < tiles; number++) {
            const int64_t low = height * number / tiles, count = height * (number + 1) / tiles - low;
            const auto run = w.scale ? tile_of<int8_t>(count, taken, heights) : tile_of<float>(count, taken, heights);
            const auto data = static_cast<const char*>(w.data) + panel * w.in * PANEL * (w.scale ? 1 : sizeof(float));
            run(x + (first + low) * w.in, w.in, data, found);
            float* sum = found;
            for (int64_t m = low; m < low + count; m++)
                for (int64_t at = panel; at < panel + taken; at++, sum += PANEL) {
                    for (int i = 0; normed && i < PANEL; i += W) store(sum + i, load(sum + i) * factor[m]);
                    for (int i = 0; w.scale && i < PANEL; i += W)
                        store(sum + i, load(sum + i) * load(w.scale + at * PANEL + i));
                    use(first + m, at, sum);
                }
        }
    }
}

// out [rows, W.out] = W (x / rms(x)) + bias; or if ``add``: out += W x
void linear(const float* x, int64_t rows, const Matrix& w, bool add, double eps, float* out) {
    product(x, rows, w, !add, eps, [&](int64_t row, int64_t panel, const float* sum) {
        static const float zeros[PANEL] = {};
        const int64_t column = panel * PANEL, valid = std::min<int64_t>(w.out - column, PANEL);
        float* to = out + row * w.out + column;
        const float* more = add ? to : w.bias ? w.bias + column : zeros;
        int64_t n = 0;
        for (; n + W <= valid; n += W) store(to + n, load(sum + n) + load(more + n));
        for (; n < valid; n++) to[n] = sum[n] + more[n];
    });
}

// out [rows, hidden] = silu(gate) up, where [gate, up] = W (x / rms(x))
void gated(const float* x, int64_t rows, const Matrix& w, double eps, float* out) {
    product(x, rows, w, true, eps, [&](int64_t row, int64_t panel, const float* sum) {
        const Vec gate = load(sum), most = all(80.f), silu = gate / (1 + exponential(-gate > most ? most : -gate));
        store(out + row * (w.out / 2) + panel * W, silu * load(sum + W));
    });
}

// Normalise and rotate queries and keys of one position of the request, and write its keys and values to the store.
void prepare(const Pass& p, const Layer& layer, float* pairs, int64_t at) {
    const int64_t row = at / p.queries, width = p.width;
    float* qkv = p.qkv + at * layer.qkv.out;
    const float* table = p.table + row * p.table_row + at % p.queries * width;
    for (int64_t head = 0; head < p.heads + p.key_heads; head++) {
        float* v = qkv + head * width;
        const float factor = layer.gain ? inverse_rms(v, width, p.eps) : 1;
        for (int64_t i = 0; layer.gain && i < width; i++) v[i] *= factor * layer.gain[head * width + i];
        for (int64_t i = 0; i < width; i += 2) {
            const float a = v[i], b = v[i + 1];
            v[i] = a * table[i] - b * table[i + 1];
            v[i + 1] = a * table[i + 1] + b * table[i];
        }
    }
    const int64_t place = pairs && p.place[at] >= 0 ? p.place[at] : p.positions - 1;
    for (int64_t which = 0; pairs && which < 2 * p.key_heads; which++) {  // keys, then values
        const int64_t head = (which / p.key_heads * p.slots + p.slot[row]) * p.key_heads + which % p.key_heads;
        std::memcpy(pairs + (head * p.positions + place) * width, qkv + (p.heads + which) * width, 4 * width);
    }
}

// out [Q, N W] = sum over keys of weight v / sum of weights; rows of out have a distance of ``gap``
template <int Q, int N>
void average(const float* weight, int64_t span, const float* v, int64_t stride, int64_t keys, float* out, int64_t gap) {
    Vec sum[Q][N] = {}, weights[Q] = {};
    for (int64_t k = 0; k < keys; k++)
        for (int q = 0; q < Q; q++) {
            weights[q] += weight[q * span + k];
            for (int n = 0; n < N; n++) sum[q][n] += weight[q * span + k] * load(v + k * stride + n * W);
        }
    for (int q = 0; q < Q; q++)
        for (int n = 0; n < N; n++) store(out + q * gap + n * W, weights[q][0] > 0 ? sum[q][n] / weights[q] : Vec{});
}

// Attention of Q queries of one row and one head. ``at``: their rows of x; ``first``: the row of attended.
template <int Q>
void attend(const Pass& p, const Layer& layer, const float* pairs, const int64_t* at, int64_t first, int64_t head) {
    constexpr int KEYS = W / Q;
    const float factor = 1 / std::sqrt(float(p.width));
    const Visible& visible = p.visible[layer.local];
    const int64_t row = at[0] / p.queries, key_head = head / (p.heads / p.key_heads), width = p.width;
    const int64_t stride = pairs ? width : layer.qkv.out, gap = p.heads * width;
    const float* keys = pairs ? pairs + ((p.slot[row] * p.key_heads + key_head) * p.positions + visible.begin) * width
                              : p.qkv + row * p.queries * stride + (p.heads + key_head) * width;
    const float* values = keys + p.key_heads * width * (pairs ? p.slots * p.positions : 1);
    float* scores = p.scores + omp_get_thread_num() * TOGETHER * p.span;
    const uint8_t* mask[Q];
    const float* query[Q];
    int64_t last[Q], end = 0;  // after the last key that a query sees
    for (int q = 0; q < Q; q++) {
        const int64_t column = at[q] % p.queries;
        query[q] = p.qkv + at[q] * layer.qkv.out + head * width;
        mask[q] = visible.mask ? visible.mask + row * visible.mask_row + column * visible.mask_query : nullptr;
        last[q] = visible.causal ? column + 1 : visible.end - visible.begin;
        while (mask[q] && last[q] > 0 && !mask[q][last[q] - 1]) last[q]--;
        end = std::max(end, last[q]);
    }
    for (int64_t k = 0; k < end; k += KEYS) {
        const float* key[KEYS];
        for (int j = 0; j < KEYS; j++) key[j] = keys + std::min(k + j, end - 1) * stride;
        Vec dot[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) dot[i] = Vec{};
        for (int64_t i = 0; i < width; i += W)
            for (int j = 0; j < KEYS; j++)
                for (int q = 0; q < Q; q++) dot[q * KEYS + j] += load(query[q] + i) * load(key[j] + i);
        const Vec found = sums(dot) * factor;
        for (int i = 0; i < W; i++) scores[i / KEYS * p.span + k + i % KEYS] = found[i];
    }
    for (int q = 0; q < Q; q++) {
        float *score = scores + q * p.span, most = -1e30f;  // a query that sees nothing gets zeros
        for (int64_t k = 0; mask[q] && k < last[q]; k++) score[k] = mask[q][k] ? score[k] : -INFINITY;
        std::fill(score + last[q], score + (end + W - 1) / W * W, -INFINITY);
        Vec high = all(most);
        for (int64_t k = 0; k < end; k += W) high = load(score + k) > high ? load(score + k) : high;
        for (int i = 0; i < W; i++) most = std::max(most, high[i]);
        for (int64_t k = 0; k < end; k += W) store(score + k, exponential(load(score + k) - most));
    }
    for (int64_t i = 0, next; i < width; i += next) {
        next = i + WIDE * W <= width ? WIDE * W : W;
        float* out = p.attended + first * gap + head * width + i;
        (next == W ? average<Q, 1> : average<Q, WIDE>)(scores, p.span, values + i, stride, end, out, gap);
    }
}

}  // namespace

extern "C" {

int redraft_width() { return W; }

const char* redraft_fingerprint() { return FINGERPRINT; }

void redraft_project(const float* x, int64_t rows, const Matrix* w, double eps, float* out, int64_t threads) {
#pragma omp parallel num_threads(threads)
    linear(x, rows, *w, false, eps, out);
}

void redraft_layers(const Pass* pass) {
    const Pass& p = *pass;
    const int64_t all = p.rows * p.queries;
    Barrier barrier;
#pragma omp parallel num_threads(p.threads)
    for (int64_t number = 0; number < p.layers; number++) {
        const Layer& layer = p.layer[number];
        const bool narrow = p.target && number == p.layers - 1;  // only the targets go on
        const int64_t count = narrow ? p.targets : all, blocks = (count + TOGETHER - 1) / TOGETHER;
        float *x = narrow ? p.out : p.x, *pairs = p.pairs ? p.pairs[number] : nullptr;
        const auto positions = share(all), tasks = share(blocks * p.heads), rows = share(count);
        linear(p.x, all, layer.qkv, false, p.eps, p.qkv);
        barrier.wait();
        for (int64_t at = positions.first; at < positions.second; at++) prepare(p, layer, pairs, at);
        barrier.wait();
        for (int64_t task = tasks.first; task < tasks.second; task++) {
            const int64_t begin = task / p.heads * TOGETHER, end = std::min(begin + TOGETHER, count);
            for (int64_t i = begin, next; i < end; i = next) {  // queries of one row at a time
                int64_t at[TOGETHER] = {};
                for (next = i; next < end; next++) {
                    at[next - i] = narrow ? p.target[next] : next;
                    if (at[next - i] / p.queries != at[0] / p.queries) break;
                }
                if (next - i == TOGETHER) attend<TOGETHER>(p, layer, pairs, at, i, task % p.heads);
                for (int64_t q = i; next - i < TOGETHER && q < next; q++)
                    attend<1>(p, layer, pairs, at + q - i, q, task % p.heads);
            }
        }
        for (int64_t i = rows.first; narrow && i < rows.second; i++)
            std::memcpy(x + i * p.dim, p.x + p.target[i] * p.dim, 4 * p.dim);
        barrier.wait();
        linear(p.attended, count, layer.attention_out, true, p.eps, x);
        barrier.wait();
        gated(x, count, layer.gate_up, p.eps, p.inner);
        barrier.wait();
        linear(p.inner, count, layer.down, true, p.eps, x);
        barrier.wait();
        for (int64_t i = rows.first; p.kept[number] && i < rows.second; i++)
            std::memcpy(p.kept[number] + i * p.dim, x + i * p.dim, 4 * p.dim);
    }
}
}
