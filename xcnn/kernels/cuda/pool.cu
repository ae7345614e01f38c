// Pools: a thread per window forward, a thread per pixel backward, so that no two threads add to one pixel.

// y and winners (maps, outs): the largest pixel of each window, the first of equal ones or the first NaN, and the kernel
// position of that pixel; 255 for a window that is all padding.
KERNEL max_pool(const real* x, index x_image, index x_channel, real* y, byte* winners, index images, index channels,
                Windows w) {
    const index windows = outs(w);
    EACH(i, images * channels * windows) {
        const index map = i / windows, image = map / channels, channel = map - image * channels;
        const real* source = x + image * x_image + channel * x_channel;
        int out[3], winner = 255;
        split(i - map * windows, w.out, out);
        real best = -INFINITY;
        each_tap(w, out, [&](int tap, bool inside, index pixel) {
            if (!inside) return;
            const real value = source[pixel];
            if (winner == 255 || value > best || (value != value && best == best)) {
                best = value;
                winner = tap;
            }
        });
        y[i] = best;
        winners[i] = (byte)winner;
    }
}

// y (maps, outs) = the sum of the pixels of each window, divided by the divisor.
KERNEL average_pool(const real* x, index x_image, index x_channel, real divisor, real* y, index images, index channels,
                    Windows w) {
    const index windows = outs(w);
    EACH(i, images * channels * windows) {
        const index map = i / windows, image = map / channels, channel = map - image * channels;
        const real* source = x + image * x_image + channel * x_channel;
        int out[3];
        split(i - map * windows, w.out, out);
        real sum = 0;
        each_tap(w, out, [&](int, bool inside, index pixel) {
            if (inside) sum += source[pixel];
        });
        y[i] = sum / divisor;
    }
}

// dx (maps, pixels) = the sum of dy (maps, outs) over the windows that contain the pixel; with winners, over those
// whose maximum it is.
KERNEL pool_gradient(const real* dy, const byte* winners, real divisor, real* dx, index maps, Windows w) {
    const index size = pixels(w), windows = outs(w);
    EACH(i, maps * size) {
        const index map = i / size;
        int pixel[3];
        split(i - map * size, w.size, pixel);
        real sum = 0;
        each_window(w, pixel, [&](int tap, index out) {
            const index window = map * windows + out;
            if (!winners || winners[window] == tap) sum += dy[window] / divisor;
        });
        dx[i] = sum;
    }
}
