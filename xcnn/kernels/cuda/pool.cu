// Pools: a thread per window forward, a thread per pixel backward. No pixel is added to by two threads.

// y and winners (maps, outs): the largest pixel of each window, the first of equal ones or the first NaN, and the kernel
// position where it was; 255 for a window that is all padding.
KERNEL max_pool(const real* x, index x_image, index x_channel, real* y, byte* winners, index images, index channels,
                Windows w) {
    const index windows = outs(w);
    EACH(i, images * channels * windows) {
        const index map = i / windows, image = map / channels, channel = map - image * channels;
        const real* source = x + image * x_image + channel * x_channel;
        int out[3], tap[3], pixel[3], winner = -1;
        split(i - map * windows, w.out, out);
        real best = -INFINITY;
        for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++)
            for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++)
                for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                    bool inside = true;
                    for (int a = 0; a < 3; a++) {
                        pixel[a] = pixel_of(w, a, out[a], tap[a]);
                        inside = inside && 0 <= pixel[a] && pixel[a] < w.size[a];
                    }
                    if (!inside) continue;
                    const real value = source[join(pixel, w.size)];
                    if (winner < 0 || value > best || (value != value && best == best)) {
                        best = value;
                        winner = (int)join(tap, w.kernel);
                    }
                }
        y[i] = best;
        winners[i] = (byte)(winner < 0 ? 255 : winner);
    }
}

// dx (maps, pixels) = the sum of dy (maps, outs) over the windows that see the pixel; with winners, over those that it
// has won.
KERNEL pool_gradient(const real* dy, const byte* winners, real divisor, real* dx, index maps, Windows w) {
    const index size = pixels(w), windows = outs(w);
    EACH(i, maps * size) {
        const index map = i / size;
        int pixel[3], tap[3], out[3];
        split(i - map * size, w.size, pixel);
        real sum = 0;
        for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++) {
            out[0] = window_of(w, 0, pixel[0], tap[0]);
            if (out[0] < 0) continue;
            for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++) {
                out[1] = window_of(w, 1, pixel[1], tap[1]);
                if (out[1] < 0) continue;
                for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                    out[2] = window_of(w, 2, pixel[2], tap[2]);
                    if (out[2] < 0) continue;
                    const index window = map * windows + join(out, w.out);
                    if (!winners || winners[window] == join(tap, w.kernel)) sum += dy[window] / divisor;
                }
            }
        }
        dx[i] = sum;
    }
}

// y (maps, outs) = the sum of the pixels of each window over the divisor.
KERNEL average_pool(const real* x, index x_image, index x_channel, real divisor, real* y, index images, index channels,
                    Windows w) {
    const index windows = outs(w);
    EACH(i, images * channels * windows) {
        const index map = i / windows, image = map / channels, channel = map - image * channels;
        const real* source = x + image * x_image + channel * x_channel;
        int out[3], tap[3], pixel[3];
        split(i - map * windows, w.out, out);
        real sum = 0;
        for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++)
            for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++)
                for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                    bool inside = true;
                    for (int a = 0; a < 3; a++) {
                        pixel[a] = pixel_of(w, a, out[a], tap[a]);
                        inside = inside && 0 <= pixel[a] && pixel[a] < w.size[a];
                    }
                    if (inside) sum += source[join(pixel, w.size)];
                }
        y[i] = sum / divisor;
    }
}
