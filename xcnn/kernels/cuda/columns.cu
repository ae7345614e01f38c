// The windows of maps as columns of a matrix, and back. The matrix has a row per channel and kernel position, and a
// column per image and window: all images in one, so that a convolution is one product of two matrices.

// columns[(c, tap), (n, out)] = x[n, c, pixel], 0 in the padding. A thread does all kernel positions of a window in one
// channel: neighbours read and write neighbours.
KERNEL im2col(const real* x, index x_image, index x_channel, real* columns, index images, index channels, Windows w) {
    const index windows = outs(w), width = images * windows;
    EACH(i, channels * width) {
        const index channel = i / width, column = i - channel * width, image = column / windows;
        int out[3], tap[3], pixel[3];
        split(column - image * windows, w.out, out);
        const real* map = x + image * x_image + channel * x_channel;
        real* target = columns + channel * taps(w) * width + column;
        for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++)
            for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++)
                for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                    bool inside = true;
                    for (int a = 0; a < 3; a++) {
                        pixel[a] = pixel_of(w, a, out[a], tap[a]);
                        inside = inside && 0 <= pixel[a] && pixel[a] < w.size[a];
                    }
                    *target = inside ? map[join(pixel, w.size)] : (real)0;
                    target += width;
                }
    }
}

// x[n, c, pixel] = the sum of what columns hold of the pixel. A thread gathers a pixel's terms, kernel position by
// kernel position: nothing is added to by two threads, and the order is always the same.
KERNEL col2im(const real* columns, real* x, index images, index channels, Windows w) {
    const index size = pixels(w), windows = outs(w), width = images * windows;
    EACH(i, images * channels * size) {
        const index map = i / size, image = map / channels, channel = map - image * channels;
        int pixel[3], tap[3], out[3];
        split(i - map * size, w.size, pixel);
        const real* source = columns + channel * taps(w) * width + image * windows;
        real sum = 0;
        for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++) {
            out[0] = window_of(w, 0, pixel[0], tap[0]);
            if (out[0] < 0) continue;
            for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++) {
                out[1] = window_of(w, 1, pixel[1], tap[1]);
                if (out[1] < 0) continue;
                for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                    out[2] = window_of(w, 2, pixel[2], tap[2]);
                    if (out[2] >= 0) sum += source[join(tap, w.kernel) * width + join(out, w.out)];
                }
            }
        }
        x[i] = sum;
    }
}
