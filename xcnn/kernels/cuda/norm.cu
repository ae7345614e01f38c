// Batch normalisation of x (images, channels, pixels). A block processes a slice of a channel, and then one block per
// channel combines the slices. Sums are taken in double, which costs no time on data-centre devices, but does on
// consumer ones.

// The place of element `i` of a channel, counted image by image.
__device__ inline index place(index i, index size, index image, index channel_offset) {
    const index n = i / size;
    return n * image + channel_offset + (i - n * size);
}

// totals (2, channels, slices): the sum of each slice, and the sum of squares about its mean. The second pass over a
// slice reads it from a cache, unless it is large.
KERNEL moments(const real* x, index x_image, index x_channel, double* totals, index images, index channels, index size,
               index slices) {
    const index channel = blockIdx.x / slices, slice = blockIdx.x - channel * slices;
    index first, end;
    bounds(images * size, slices, slice, &first, &end);
    double sum = 0;
    for (index i = first + threadIdx.x; i < end; i += BLOCK) sum += x[place(i, size, x_image, channel * x_channel)];
    sum = block_sum(sum);
    const double mean = first < end ? sum / (double)(end - first) : 0;
    double squares = 0;
    for (index i = first + threadIdx.x; i < end; i += BLOCK) {
        const double off = x[place(i, size, x_image, channel * x_channel)] - mean;
        squares += off * off;
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        totals[blockIdx.x] = sum;
        totals[channels * slices + blockIdx.x] = squares;
    }
}

// mean, var and rstd of each channel: the squares about the mean are those about the slices' means, plus those of these
// means about it.
KERNEL statistics(const double* totals, real* mean, real* var, real* rstd, double eps, index count, index channels,
                  index slices) {
    const index channel = blockIdx.x;
    const double* sums = totals + channel * slices;
    const double* squares = sums + channels * slices;
    double total = 0;
    for (index s = threadIdx.x; s < slices; s += BLOCK) total += sums[s];
    const double centre = block_sum(total) / (double)count;
    double off = 0;
    for (index s = threadIdx.x; s < slices; s += BLOCK) {
        index first, end;
        bounds(count, slices, s, &first, &end);
        if (first == end) continue;
        const double distance = sums[s] / (double)(end - first) - centre;
        off += squares[s] + distance * distance * (double)(end - first);
    }
    off = block_sum(off) / (double)count;
    if (threadIdx.x == 0) {
        mean[channel] = (real)centre;
        var[channel] = (real)off;
        rstd[channel] = (real)(1 / sqrt(off + eps));
    }
}

// y (images, channels, pixels) = (x - mean) * rstd * weight + bias.
KERNEL normalise(const real* x, index x_image, index x_channel, const real* mean, const real* rstd, const real* weight,
                 const real* bias, real* y, index images, index channels, index size) {
    EACH(i, images * channels * size) {
        const index map = i / size, image = map / channels, c = map - image * channels;
        const real factor = weight ? rstd[c] * weight[c] : rstd[c], shift = bias ? bias[c] : (real)0;
        y[i] = (x[image * x_image + c * x_channel + (i - map * size)] - mean[c]) * factor + shift;
    }
}

// totals (2, channels, slices): the sums of dy, and of dy * (x - mean).
KERNEL gradient_sums(const real* x, index x_image, index x_channel, const real* dy, index dy_image, index dy_channel,
                     const real* mean, double* totals, index images, index channels, index size, index slices) {
    const index channel = blockIdx.x / slices, slice = blockIdx.x - channel * slices;
    index first, end;
    bounds(images * size, slices, slice, &first, &end);
    double sum = 0, product = 0;
    for (index i = first + threadIdx.x; i < end; i += BLOCK) {
        const double gradient = dy[place(i, size, dy_image, channel * dy_channel)];
        sum += gradient;
        product += gradient * (double)(x[place(i, size, x_image, channel * x_channel)] - mean[channel]);
    }
    sum = block_sum(sum);
    product = block_sum(product);
    if (threadIdx.x == 0) {
        totals[blockIdx.x] = sum;
        totals[channels * slices + blockIdx.x] = product;
    }
}

// dweight and dbias, and for dx (see `input_gradient`): slope = f * rstd^2 * mean(dy * (x - mean)), shift = f * mean(dy)
// with f = rstd * weight.
KERNEL gradient_statistics(const double* totals, const real* rstd, const real* weight, real* dweight, real* dbias,
                           real* slope, real* shift, index count, index channels, index slices) {
    const index channel = blockIdx.x;
    const double* sums = totals + channel * slices;
    double sum = 0, product = 0;
    for (index s = threadIdx.x; s < slices; s += BLOCK) {
        sum += sums[s];
        product += sums[channels * slices + s];
    }
    sum = block_sum(sum);
    product = block_sum(product);
    if (threadIdx.x == 0) {
        const double scale = rstd[channel], factor = weight ? scale * weight[channel] : scale;
        dbias[channel] = (real)sum;
        dweight[channel] = (real)(product * scale);
        slope[channel] = (real)(factor * scale * scale * (product / (double)count));
        shift[channel] = (real)(factor * (sum / (double)count));
    }
}

// dx = f * dy - ((x - mean) * slope + shift), or f * dy without slope, if mean and rstd are constants. It has the
// memory layout of x, which a convolution before needs.
KERNEL input_gradient(const real* x, index x_image, index x_channel, const real* dy, index dy_image, index dy_channel,
                      const real* mean, const real* rstd, const real* weight, const real* slope, const real* shift,
                      real* dx, index dx_image, index dx_channel, index images, index channels, index size) {
    EACH(i, images * channels * size) {
        const index map = i / size, image = map / channels, c = map - image * channels, pixel = i - map * size;
        const real factor = weight ? rstd[c] * weight[c] : rstd[c];
        const real centred = x[image * x_image + c * x_channel + pixel] - mean[c];
        const real gradient = dy[image * dy_image + c * dy_channel + pixel] * factor;
        dx[image * dx_image + c * dx_channel + pixel] = slope ? gradient - (centred * slope[c] + shift[c]) : gradient;
    }
}

// The running statistics after a batch.
KERNEL running(const real* running_mean, const real* running_var, const real* mean, const real* var, real* new_mean,
               real* new_var, real keep, real take, real unbias, index channels) {
    EACH(c, channels) {
        new_mean[c] = keep * running_mean[c] + take * mean[c];
        new_var[c] = keep * running_var[c] + take * (var[c] * unbias);
    }
}
