// What the native module offers. Free of torch and of Python: pointers, sizes and plain structs.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace mamlpp {

// Instruction sets that both the processor has and the operating system lets this process use.
struct CpuFeatures {
    bool neon = false;
    bool avx2 = false;
    bool fma = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512vl = false;
    bool avx512bf16 = false;
    bool amx_tile = false;
    bool amx_bf16 = false;
    bool amx_int8 = false;
};

// All false on anything but AArch64 and x86-64. On Linux the tile registers of AMX are granted to a
// process that asks; this asks, once, and later calls return the same answer.
const CpuFeatures& cpu_features();

// Threads that share the items of one loop. `each` returns when all are done; items of one worker
// run one after the other.
class Team {
  public:
    using Run = void (*)(void* context, int item, int worker);
    virtual int workers() const = 0;
    virtual void each(int items, Run run, void* context) = 0;
    // The number of its first worker among all threads of the call, behind which its others follow.
    int first() const { return first_; }

  protected:
    explicit Team(int first) : first_(first) {}
    ~Team() = default;

  private:
    const int first_;
};

// How the products of whole passes are taken of float32 data. Sums are float32, and so is all else.
enum class Precision {
    fp32,
    bf16x3, // operands as the sum of two bfloat16 each, without the product of the small ones
    bf16    // operands rounded to bfloat16
};

// The backbone: `stages` of conv 3×3 → batch norm → leaky ReLU → 2×2 max pool, or with a stride of
// 2 instead of the pooling, then a linear classifier.
struct Net {
    int channels, side, filters, stages, ways;
    bool pool;
    double slope, eps;
    Precision precision = Precision::fp32; // of its convolutions' products
};

// One task's part of a pass over one set of n images.
template <class T> struct PassTask {
    const void* images;    // as `prepare` left them
    const int64_t* labels; // [n], for the backward pass
    const T* theta;        // [P]
    const T* row;          // [stages][2][filters] gains and biases
    const T* given_mean;   // [stages · filters] to normalise by, or null for the batch's own
    const T* given_var;
    T* loss;
    T* logits;        // [n][ways], null: not wanted
    T* gradient;      // [P], null: forward only
    T* norm_gradient; // [stages][2][filters]
    T* mean;          // [stages · filters] of the batch
    T* var;           // biased
    void* kept;       // pass_bytes()
    bool keep;        // what `tangent` reads, or `pullback`
    T* features;      // [n][d], null: not wanted
};

// The gradient of ⟨d_features, features⟩ of one task, whose pass kept.
template <class T> struct PullbackTask {
    const void* images;
    const T* theta;      // as in the pass
    const T* d_features; // [n][d]
    void* kept;          // by the pass
    T* gradient;         // [P], of the classifier 0
    T* norm_gradient;    // [stages][2][filters]
};

// Direction of one task's gradient along that of its parameters.
template <class T> struct TangentTask {
    const void* images;
    const T* theta;     // as in the pass
    const T* direction; // [P]
    const void* kept;   // by the pass
    T* product;         // [P]
    T* norm_product;    // [stages][2][filters]
};

// A convolution of one task's n square images by filters of an odd size, with a padding of size
// / 2.
struct ConvShape {
    int n, channels, side, filters, stride; // stride 1 or 2
    int size = 3;
};

// What of a convolution is computed: the value, from which winners may follow; its tangent; the two
// gradients or their tangents.
enum class ConvPart { value, tangent, gradients };

// One product of a convolution or of its gradients. Null where it takes no part.
template <class T> struct ConvPair {
    const T* x;  // [n][side][side][channels]
    const T* w;  // [filters][size²][channels]
    const T* dz; // [n][out][out][filters]
};

// One task of the three contractions; of a tangent each is the sum of two products.
template <class T> struct ConvTask {
    ConvPair<T> pairs[2];
    T* z;  // Σ conv(x, w), of the value
    T* dx; // Σ dgrad(dz, w), of the gradient; null: not wanted
    T* dw; // Σ wgrad(x, dz), of the gradient; null: not wanted
};

// Batch norm with activation and pooling of one task's n square images.
struct NormShape {
    int n, channels, side;
    bool pool;
    double slope, eps;
};

template <class T> struct NormFwd {
    const T* z;                      // [n][side][side][channels]
    const T *gain, *bias;            // [channels]
    const T *given_mean, *given_var; // to normalise by, null: the batch's own
    T* y;                            // [n][pooled][pooled][channels]
    T *mean, *var;                   // [channels] of the batch, biased
    T* rstd;                         // [channels]
    T* x_hat;                        // [n][pooled][pooled][channels], of pooling
    uint16_t* winners;               // [n][winner_words], of pooling
};

// What norm_act_fwd read and wrote.
template <class T> struct NormSaved {
    const T *z, *gain, *bias, *centre, *rstd;
    const T* x_hat; // of pooling
    const uint16_t* winners;
    bool given; // the statistics were given and are constants
};

template <class T> struct NormBwd {
    const T* dy;
    T *dz, *dgain, *dbias;
};

// Directions may be null: they are 0.
template <class T> struct NormTanFwd {
    const T *z_dot, *gain_dot, *bias_dot;
    T* y_dot;
    T *mean_dot, *q, *x_hat_dot; // with z_dot; the first two unless the statistics were given
};

template <class T> struct NormTanBwd {
    const T *z_dot, *mean_dot, *q, *x_hat_dot; // of NormTanFwd
    const T *dy, *dy_dot, *gain_dot;
    T *dz_dot, *dgain_dot, *dbias_dot;
};

// Part of a segment of the flat buffers, so that the workers have equal shares.
struct Piece {
    int segment;
    ptrdiff_t from, to;
};

// A matrix of one row a task; rows are contiguous and `stride` apart. Null: none, or zeros.
template <class T> struct Rows {
    T* data = nullptr;
    ptrdiff_t stride = 0;
};

template <class T> struct UpdateFwd {
    Rows<const T> theta;
    const T* rates; // [segments], of grad; or [P], where each number has its own
    Rows<const T> grad;
    const T* rates_dot; // of grad_dot; null: no such term
    Rows<const T> grad_dot;
    Rows<T> out; // theta − rates·grad − rates_dot·grad_dot
    bool each;   // number has its own rate
};

template <class T> struct UpdateBwd {
    Rows<const T> d_theta;
    Rows<const T> grad; // null: no gradient of the rates is wanted
    const T* rates;     // null: none of grad
    Rows<T> d_grad;
    Rows<T> d_rates; // one a segment, all zeros; or one a number
    double* shares;  // [pieces][tasks], of segments
    bool each;       // number has its own rate
};

// One step of Adam (Kingma and Ba 2015, algorithm 1) over flat buffers.
template <class T> struct AdamStep {
    const T *param, *first, *second, *grad;
    T clamp;                 // bound on each entry of grad
    T fresh1, beta2, fresh2; // 1 − beta1, beta2, 1 − beta2
    T rate;                  // lr / (1 − beta1ᵗ)
    T correction;            // 1 / √(1 − beta2ᵗ)
    T eps;
    T *param_out, *first_out, *second_out;
};

// The rule of the meta-learner LSTM: its units, its numbers, and rows of what it remembers of a
// coordinate beside c: F, I, the cells and h.
constexpr int lstm_units = 20, lstm_numbers = 2046, lstm_memory = 2 + 2 * lstm_units;
// Coordinates whose memory lies together.
template <class T> constexpr int lstm_block = 192 / sizeof(T);

// One step of all tasks.
template <class T> struct LstmStep {
    const T* own;           // the rule's numbers
    const T* loss;          // [tasks]
    Rows<const T> gradient; // [n]
    Rows<const T> c;        // [n]
    Rows<const T> memory;   // [⌈n / lstm_block⌉][lstm_memory][lstm_block]; null: 0
    Rows<T> c_out;          // [n]
    Rows<T> memory_out;     // may be `memory`
};

// Back through all steps of all tasks, which are computed again.
template <class T> struct LstmSweep {
    const T* own;
    int steps;
    const T* losses;                // [steps][tasks]
    const Rows<const T>* gradients; // [steps] of [n]
    const T* start;                 // [n] c before the first step
    Rows<const T> carry;            // [n] gradient of c behind the last one
    Rows<T> d_start;                // [n]
    Rows<T> d_own;                  // [lstm_numbers]
};

// Multiply-adds of the convolutions of a pass, as they are taken: by Winograd in its cells, and of
// the filters that complete a vector; directly of all nine taps, also on the border. By AMX what
// completes a tile is more than they say.
struct Products {
    double forward = 0;
    double backward = 0; // beside it, of a gradient
    double tangent = 0;  // of both
};

// Whole passes, of one instruction set and precision. Every `bytes` is for n images of one task;
// blocks are aligned to 64 bytes. `scratch` is scratch_bytes() for each worker of the team, one
// behind the other.
template <class T> struct PassOps {
    size_t (*images_bytes)(const Net&, int n);
    size_t (*pass_bytes)(const Net&, int n, bool keep);
    size_t (*work_bytes)(const Net&, int n);    // of a pass, beside what it keeps
    size_t (*tangent_bytes)(const Net&, int n); // of a tangent
    size_t (*scratch_bytes)(const Net&, int n);
    Products (*products)(const Net&, int n);
    void (*prepare)(const Net&, int n, const T* x, void* images, void* work, void* scratch, Team&);
    void (*pass)(const Net&, int n, const PassTask<T>&, void* work, void* scratch, Team&);
    void (*tangent)(const Net&, int n, const TangentTask<T>&, void* work, void* scratch, Team&);
    void (*pullback)(const Net&, int n, const PullbackTask<T>&, void* work, void* scratch, Team&);
};

// Single ops of one instruction set, one task each.
template <class T> struct CpuOps {
    size_t (*conv_work_bytes)(const ConvShape&, ConvPart);
    size_t (*conv_scratch_bytes)(const ConvShape&, ConvPart);
    void (*task_conv)(const ConvShape&, ConvPart, const ConvTask<T>&, void* work, void* scratch,
                      Team&);
    size_t (*winner_words)(const NormShape&); // uint16 an image
    size_t (*norm_work_bytes)(const NormShape&);
    size_t (*norm_scratch_bytes)(const NormShape&);
    void (*norm_act_fwd)(const NormShape&, const NormFwd<T>&, void* work, void* scratch, Team&);
    void (*norm_act_bwd)(const NormShape&, const NormSaved<T>&, const NormBwd<T>&, void* work,
                         void* scratch, Team&);
    void (*norm_act_tan_fwd)(const NormShape&, const NormSaved<T>&, const NormTanFwd<T>&,
                             void* work, void* scratch, Team&);
    void (*norm_act_tan_bwd)(const NormShape&, const NormSaved<T>&, const NormTanBwd<T>&,
                             void* work, void* scratch, Team&);
    // All tasks at once.
    void (*update_fwd)(const UpdateFwd<T>&, int tasks, const Piece*, int pieces, Team&);
    void (*update_bwd)(const UpdateBwd<T>&, int tasks, const Piece*, int pieces, Team&);
    void (*adam)(const AdamStep<T>&, ptrdiff_t n, Team&);
    // `steps`: of a sweep; 0: of one step forward.
    size_t (*lstm_work_bytes)(int tasks, ptrdiff_t n, int steps);
    size_t (*lstm_scratch_bytes)(int steps);
    void (*lstm_fwd)(const LstmStep<T>&, int tasks, ptrdiff_t n, void* work, void* scratch, Team&);
    void (*lstm_bwd)(const LstmSweep<T>&, int tasks, ptrdiff_t n, void* work, void* scratch, Team&);
    // So many rounds of them in the registers of each worker, which leaves a number: returns how
    // many floating-point operations that was.
    double (*multiply_adds)(ptrdiff_t rounds, T* left, int workers, Team&);
};

// The instruction sets that the kernels are built for, each processor's in order of preference. The
// last two are for bfloat16; with them, what is float32 or float64 runs on the one before.
enum class Isa { portable, neon, avx2, avx512, avx512bf16, amx };

Isa isa();               // the one in use: the best that this machine grants, unless it is limited
Isa limit_isa(Isa most); // to the best that it grants of those up to this one

// Of the instruction set in use. pass_ops is null where it has no products of this precision;
// float64 is for fp32 alone, which stands for products of the data's own type.
template <class T> const PassOps<T>* pass_ops(Precision);
template <class T> const CpuOps<T>& cpu_ops();

} // namespace mamlpp
