// Code that all kernels share. It is preceded by two types, for which kernels are compiled separately: `real`, float or
// double, and `index`, int, or long long if an array has more than about 2^30 elements.
//
// A kernel is KERNEL name(parameters). `_launch.py` reads the parameters to convert the arguments: `const` arrays are
// only read. An array `x` is contiguous unless parameters `x_image` and `x_channel` follow, the distances of its images
// and of its channels in elements; the pixels of a map are always contiguous.

typedef unsigned char byte;
typedef unsigned long long u64;

#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#endif

#define BLOCK 256
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)

// Distribute `count` items over all threads; adjacent threads process adjacent items.
#define EACH(i, count) \
    for (index i = (index)blockIdx.x * BLOCK + threadIdx.x; i < (count); i += (index)gridDim.x * BLOCK)

// The windows of a convolution or a pool over maps of three axes; maps of fewer have leading axes of one pixel.
struct Windows {
    int size[3], kernel[3], stride[3], dilation[3], before[3], out[3];
};

__device__ inline index pixels(const Windows& w) { return (index)w.size[0] * w.size[1] * w.size[2]; }
__device__ inline index outs(const Windows& w) { return (index)w.out[0] * w.out[1] * w.out[2]; }
__device__ inline int taps(const Windows& w) { return w.kernel[0] * w.kernel[1] * w.kernel[2]; }

// The coordinates of element `i` of a map of these sizes.
__device__ inline void split(index i, const int* sizes, int* places) {
    const index rows = i / sizes[2];
    places[2] = (int)(i - rows * sizes[2]);
    places[0] = (int)(rows / sizes[1]);
    places[1] = (int)(rows - (index)places[0] * sizes[1]);
}

__device__ inline index join(const int* places, const int* sizes) {
    return ((index)places[0] * sizes[1] + places[1]) * sizes[2] + places[2];
}

// The pixel along an axis at kernel position `tap` of window `out`; outside 0 .. size - 1 it is padding.
__device__ inline int pixel_of(const Windows& w, int axis, int out, int tap) {
    return out * w.stride[axis] - w.before[axis] + tap * w.dilation[axis];
}

// The window along an axis that has a pixel at kernel position `tap`, or -1.
__device__ inline int window_of(const Windows& w, int axis, int pixel, int tap) {
    const int start = pixel + w.before[axis] - tap * w.dilation[axis];
    if (start < 0) return -1;
    const int out = start / w.stride[axis];
    return out * w.stride[axis] == start && out < w.out[axis] ? out : -1;
}

// Call see(tap, inside, pixel) for every kernel position of the window `out`, in row-major order, with its place in the
// kernel, and in the map unless it is padding.
template <typename See> __device__ inline void each_tap(const Windows& w, const int* out, See see) {
    int tap[3], pixel[3];
    for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++)
        for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++)
            for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                bool inside = true;
                for (int a = 0; a < 3; a++) {
                    pixel[a] = pixel_of(w, a, out[a], tap[a]);
                    inside = inside && 0 <= pixel[a] && pixel[a] < w.size[a];
                }
                see((int)join(tap, w.kernel), inside, join(pixel, w.size));
            }
}

// Call see(tap, window) for every window that contains `pixel`, in the order of its kernel positions there.
template <typename See> __device__ inline void each_window(const Windows& w, const int* pixel, See see) {
    int tap[3], out[3];
    for (tap[0] = 0; tap[0] < w.kernel[0]; tap[0]++) {
        out[0] = window_of(w, 0, pixel[0], tap[0]);
        if (out[0] < 0) continue;
        for (tap[1] = 0; tap[1] < w.kernel[1]; tap[1]++) {
            out[1] = window_of(w, 1, pixel[1], tap[1]);
            if (out[1] < 0) continue;
            for (tap[2] = 0; tap[2] < w.kernel[2]; tap[2]++) {
                out[2] = window_of(w, 2, pixel[2], tap[2]);
                if (out[2] >= 0) see((int)join(tap, w.kernel), join(out, w.out));
            }
        }
    }
}

// Where a slice begins and ends if `count` elements are cut into `slices` slices; the last ones may be empty.
__device__ inline void bounds(index count, index slices, index slice, index* first, index* end) {
    const index step = (count + slices - 1) / slices;
    *first = slice * step < count ? slice * step : count;
    *end = *first + step < count ? *first + step : count;
}

// The sum over the threads of a block, always in the same order; all threads get it.
template <typename T> __device__ inline T block_sum(T value) {
    __shared__ T cells[BLOCK];
    cells[threadIdx.x] = value;
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) cells[threadIdx.x] += cells[threadIdx.x + half];
    }
    __syncthreads();
    value = cells[0];
    __syncthreads();  // before the cells are written again
    return value;
}
