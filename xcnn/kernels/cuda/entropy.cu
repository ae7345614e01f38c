// Cross entropy of rows of logits with class indices. Checking labels on the host would stall the device, so loss and
// gradient are NaN for a row whose label is out of range.

template <typename T> __device__ inline T block_largest(T value) {
    __shared__ T cells[BLOCK];
    cells[threadIdx.x] = value;
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const T other = cells[threadIdx.x + half], mine = cells[threadIdx.x];
            cells[threadIdx.x] = other > mine || other != other ? other : mine;
        }
    }
    __syncthreads();
    value = cells[0];
    __syncthreads();
    return value;
}

// p (rows, classes) = softmax(x), losses (rows): 0 where the label is ignored. A block per row.
KERNEL entropies(const real* x, const long long* target, long long ignored, real* p, real* losses, index classes) {
    const real* scores = x + (index)blockIdx.x * classes;
    real* row = p + (index)blockIdx.x * classes;
    real largest = -INFINITY, mass = 0;
    for (index c = threadIdx.x; c < classes; c += BLOCK)
        largest = scores[c] > largest || scores[c] != scores[c] ? scores[c] : largest;
    largest = block_largest(largest);
    for (index c = threadIdx.x; c < classes; c += BLOCK) mass += exp(scores[c] - largest);
    mass = block_sum(mass);
    for (index c = threadIdx.x; c < classes; c += BLOCK) row[c] = exp(scores[c] - largest) / mass;
    if (threadIdx.x == 0) {
        const long long label = target[blockIdx.x];
        const bool is_class = 0 <= label && label < classes;
        losses[blockIdx.x] = label == ignored ? (real)0 : is_class ? log(mass) - (scores[label] - largest) : (real)NAN;
    }
}

// loss = the sum of the losses, divided if `mean` by the number of rows that are not ignored; count[0] = the divisor.
// One block.
KERNEL total_loss(const real* losses, const long long* target, long long ignored, real* loss, real* count, index rows,
                  int mean) {
    real sum = 0, counted = 0;
    for (index n = threadIdx.x; n < rows; n += BLOCK) {
        sum += losses[n];
        counted += target[n] != ignored ? 1 : 0;
    }
    sum = block_sum(sum);
    counted = block_sum(counted);
    if (threadIdx.x == 0) {
        count[0] = mean ? counted : (real)1;
        loss[0] = mean ? sum / counted : sum;  // NaN for no rows
    }
}

// dx = (p - one-hot label) * dy / count; 0 where the label is ignored, NaN where p is.
KERNEL entropy_gradient(const real* p, const long long* target, long long ignored, const real* dy, const real* count,
                        real* dx, index rows, index classes) {
    const real factor = count[0] ? dy[0] / count[0] : dy[0];
    EACH(i, rows * classes) {
        const index row = i / classes;
        const long long label = target[row], c = i - row * classes;
        const bool is_class = 0 <= label && label < classes;
        dx[i] = label == ignored ? p[i] * 0 : is_class ? (p[i] - (c == label ? 1 : 0)) * factor : (real)NAN;
    }
}
