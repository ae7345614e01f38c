// Dropout with the numbers of NumPy's default generator: PCG64, a 128-bit linear congruential generator (M. O'Neill, PCG,
// 2014; output XSL-RR). Its state after any number of steps can be computed directly (F. Brown, Random number generation
// with arbitrary strides, 1994), so that each thread jumps to its own.

struct Stream {
    u64 state[2], increment[2];  // high, low
};

struct Wide {
    u64 high, low;
};

__device__ inline Wide times(Wide a, Wide b) {
    return {__umul64hi(a.low, b.low) + a.high * b.low + a.low * b.high, a.low * b.low};
}

__device__ inline Wide plus(Wide a, Wide b) {
    const u64 low = a.low + b.low;
    return {a.high + b.high + (low < a.low ? 1 : 0), low};
}

// The 64 bits that the generator returns after a number of steps.
__device__ inline u64 draw(const Stream& stream, u64 steps) {
    Wide factor = {0, 1}, shift = {0, 0};
    Wide step = {2549297995355413924ULL, 4865540595714422341ULL}, add = {stream.increment[0], stream.increment[1]};
    for (; steps; steps >>= 1) {
        if (steps & 1) {
            factor = times(factor, step);
            shift = plus(times(shift, step), add);
        }
        add = times(plus(step, {0, 1}), add);
        step = times(step, step);
    }
    const Wide state = plus(times(factor, {stream.state[0], stream.state[1]}), shift);
    const u64 value = state.high ^ state.low, turn = state.high >> 58;
    return value >> turn | value << (-turn & 63);
}

// y = x * mask, with mask 0 if the generator's next number of 24 bits is below p, else `scale`; kept is 0 or 1. 64 bits
// give two numbers, the low half first. `ahead` is 1 if the first number is a half left over from an earlier call.
KERNEL drop(const real* x, real* y, byte* kept, index count, Stream stream, unsigned leftover, int ahead, float p,
            real scale) {
    EACH(pair, (count + ahead + 1) / 2) {
        const u64 bits = draw(stream, (u64)pair + (ahead ? 0 : 1));
        for (int half = 0; half < 2; half++) {
            const index i = 2 * pair + half - ahead;
            if (i < 0 || i >= count) continue;
            const unsigned word = ahead && i == 0 ? leftover : half ? (unsigned)(bits >> 32) : (unsigned)bits;
            kept[i] = (word >> 8) * (1.0f / 16777216.0f) >= p;
            y[i] = x[i] * (kept[i] ? scale : (real)0);
        }
    }
}

KERNEL drop_gradient(const real* dy, const byte* kept, real* dx, index count, real scale) {
    EACH(i, count) dx[i] = dy[i] * (kept[i] ? scale : (real)0);
}
