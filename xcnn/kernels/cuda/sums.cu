// Sums along one axis of a matrix, in slices: each block adds up a part of a long row or column, and a second launch
// the parts. The order depends on the shape alone.

// sums (rows, slices): each the sum of a slice of a row of x (rows, length). A block per slice.
KERNEL row_sums(const real* x, real* sums, index length, index slices) {
    const index row = blockIdx.x / slices, slice = blockIdx.x - row * slices;
    index first, end;
    bounds(length, slices, slice, &first, &end);
    real sum = 0;
    for (index i = first + threadIdx.x; i < end; i += BLOCK) sum += x[row * length + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// sums (slices, columns): each the sum of a slice of a column of x (rows, columns); with y, only of x where y is not 0,
// which is also written to `masked`. A block has 32 adjacent columns, with 8 threads each.
KERNEL column_sums(const real* x, const real* y, real* masked, real* sums, index rows, index columns, index slices) {
    __shared__ real cells[BLOCK];
    const int lane = threadIdx.x / 32, place = threadIdx.x % 32;
    const index group = blockIdx.x / slices, slice = blockIdx.x - group * slices, column = group * 32 + place;
    index first, end;
    bounds(rows, slices, slice, &first, &end);
    real sum = 0;
    if (column < columns)
        for (index row = first + lane; row < end; row += BLOCK / 32) {
            const index i = row * columns + column;
            const real pixel = x[i], value = !y || y[i] != 0 ? pixel : (real)0;  // neither load waits for the other
            if (masked) masked[i] = value;
            sum += value;
        }
    cells[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && column < columns) {
        for (int other = 1; other < BLOCK / 32; other++) sum += cells[other * 32 + place];
        sums[slice * columns + column] = sum;
    }
}
