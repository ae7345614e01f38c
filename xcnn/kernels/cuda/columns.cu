// The windows of maps as columns of a matrix, and back. The matrix has a row per channel and kernel position, and a
// column per image and window: all images in one, so that a convolution is one product of two matrices.

// columns[(c, tap), (n, out)] = x[n, c, pixel], 0 in the padding. A thread copies all kernel positions of a window in
// one channel, so that adjacent threads read and write adjacent elements.
KERNEL im2col(const real* x, index x_image, index x_channel, real* columns, index images, index channels, Windows w) {
    const index windows = outs(w), width = images * windows;
    EACH(i, channels * width) {
        const index channel = i / width, column = i - channel * width, image = column / windows;
        const real* map = x + image * x_image + channel * x_channel;
        real* target = columns + channel * taps(w) * width + column;
        int out[3];
        split(column - image * windows, w.out, out);
        each_tap(w, out, [&](int tap, bool inside, index pixel) { target[tap * width] = inside ? map[pixel] : (real)0; });
    }
}

// x[n, c, pixel] = the sum of the pixel's elements in columns. A thread adds the terms of a pixel in the order of the
// kernel positions: no two threads add to one element, and the order is always the same.
KERNEL col2im(const real* columns, real* x, index images, index channels, Windows w) {
    const index size = pixels(w), windows = outs(w), width = images * windows;
    EACH(i, images * channels * size) {
        const index map = i / size, image = map / channels, channel = map - image * channels;
        const real* source = columns + channel * taps(w) * width + image * windows;
        int pixel[3];
        split(i - map * size, w.size, pixel);
        real sum = 0;
        each_window(w, pixel, [&](int tap, index window) { sum += source[tap * width + window]; });
        x[i] = sum;
    }
}
