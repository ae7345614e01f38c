// The passes around the matrix products: bias, ReLU and its mask, and the order of images and channels. A product over
// all images is (channels, images, pixels), a batch (images, channels, pixels).

// y (images, channels, pixels) = products (channels, images, pixels) + bias, and 0 for negative elements with ReLU.
KERNEL finish_maps(const real* products, const real* bias, real* y, index images, index channels, index size, int relu) {
    EACH(i, images * channels * size) {
        const index map = i / size, image = map / channels, channel = map - image * channels;
        real value = products[(channel * images + image) * size + (i - map * size)];
        if (bias) value += bias[channel];
        y[i] = relu && value <= 0 ? (real)0 : value;  // NaN stays
    }
}

// led (channels, images, pixels) = dy where y (images, channels, pixels) is not 0, or dy if there is no y; sums
// (channels, slices), if given, = the sum of each slice of a channel. A block per slice.
KERNEL lead_channels(const real* dy, index dy_image, index dy_channel, const real* y, real* led, real* sums,
                     index images, index channels, index size, index slices) {
    const index channel = blockIdx.x / slices, slice = blockIdx.x - channel * slices, length = images * size;
    index first, end;
    bounds(length, slices, slice, &first, &end);
    real sum = 0;
    for (index i = first + threadIdx.x; i < end; i += BLOCK) {
        const index image = i / size, pixel = i - image * size;
        const real gradient = dy[image * dy_image + channel * dy_channel + pixel];  // no load waits for another
        const real value = !y || y[(image * channels + channel) * size + pixel] != 0 ? gradient : (real)0;
        led[channel * length + i] = value;
        sum += value;
    }
    if (!sums) return;
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// y (rows, columns) += bias, and 0 for negative elements with ReLU, in place.
KERNEL finish_rows(real* y, const real* bias, index count, index columns, int relu) {
    EACH(i, count) {
        real value = y[i];
        if (bias) value += bias[i % columns];
        y[i] = relu && value <= 0 ? (real)0 : value;
    }
}

// dx = dy where y is not 0.
KERNEL mask(const real* dy, const real* y, real* dx, index count) {
    EACH(i, count) {
        const real gradient = dy[i];
        dx[i] = y[i] != 0 ? gradient : (real)0;
    }
}
