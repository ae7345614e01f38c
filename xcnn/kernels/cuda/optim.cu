// Updates of many parameters in one launch: a table of their arrays is an argument. The arithmetic is that of
// `optim/rules.py`, element by element.

#define SLOTS 32

// Addresses of arrays, 0 for state that a rule does not keep, and where each parameter ends in the numbering of all
// elements.
struct Slots {
    u64 data[SLOTS], grad[SLOTS], first[SLOTS], second[SLOTS], third[SLOTS];
    long long end[SLOTS];
    long long count;
};

// The parameter of an element in that numbering.
__device__ inline int slot_of(const Slots& slots, index i) {
    int low = 0, high = (int)slots.count - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (i < slots.end[middle]) high = middle;
        else low = middle + 1;
    }
    return low;
}

// The arrays of a parameter, from one of its elements on.
struct Number {
    real *data, *grad, *first, *second, *third;
};

__device__ inline real* at(u64 address, index i) { return address ? (real*)address + i : (real*)0; }

__device__ inline Number number(const Slots& slots, index i) {
    const int slot = slot_of(slots, i);
    if (slot > 0) i -= (index)slots.end[slot - 1];
    return {at(slots.data[slot], i), at(slots.grad[slot], i), at(slots.first[slot], i), at(slots.second[slot], i),
            at(slots.third[slot], i)};
}

// totals = NaN for each parameter whose gradient is not finite. Several threads may write the same value.
KERNEL look(Slots slots, real* totals) {
    EACH(i, (index)slots.end[slots.count - 1]) {
        const real g = *number(slots, i).grad;
        if (g - g != 0) totals[slot_of(slots, i)] = (real)NAN;
    }
}

// first: velocity. `gain` is the factor of the gradient in it.
KERNEL sgd(Slots slots, real lr, real decay, real momentum, real gain, int nesterov) {
    EACH(i, (index)slots.end[slots.count - 1]) {
        const Number n = number(slots, i);
        real g = decay != 0 ? *n.grad + decay * *n.data : *n.grad;
        if (n.first) {
            const real velocity = momentum * *n.first + gain * g;
            *n.first = velocity;
            g = nesterov ? g + momentum * velocity : velocity;
        }
        *n.data -= lr * g;
    }
}

// first: mean, second: mean square. `root` is the square root of the second bias correction; lr includes the first.
KERNEL adam(Slots slots, real lr, real shrink, real decay, real take1, real keep2, real take2, real root, real eps) {
    EACH(i, (index)slots.end[slots.count - 1]) {
        const Number n = number(slots, i);
        const real value = shrink * *n.data, g = decay != 0 ? *n.grad + decay * value : *n.grad;
        const real mean = *n.first + take1 * (g - *n.first), square = keep2 * *n.second + take2 * (g * g);
        *n.first = mean;
        *n.second = square;
        *n.data = value - lr * (mean / (sqrt(square) / root + eps));
    }
}

// first: mean square, second: mean, third: velocity.
KERNEL rmsprop(Slots slots, real lr, real alpha, real take, real eps, real decay, real momentum) {
    EACH(i, (index)slots.end[slots.count - 1]) {
        const Number n = number(slots, i);
        const real g = decay != 0 ? *n.grad + decay * *n.data : *n.grad;
        real spread = alpha * *n.first + take * (g * g);
        *n.first = spread;
        if (n.second) {
            const real mean = *n.second + take * (g - *n.second);
            *n.second = mean;
            spread = fabs(spread - mean * mean);
        }
        real update = g / (sqrt(spread) + eps);
        if (n.third) {
            update += momentum * *n.third;
            *n.third = update;
        }
        *n.data -= lr * update;
    }
}
