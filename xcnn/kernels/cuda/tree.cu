// The sum of arrays in the order of a tree: after each one, so many times the last two sums are added.

#define TERMS 64
#define DEPTH 32

struct Terms {
    u64 address[TERMS];
    int folds[TERMS];
    long long count;
};

// A thread keeps the sums of one element that still wait for their siblings.
KERNEL tree_sum(Terms terms, real* total, index length) {
    EACH(i, length) {
        real sums[DEPTH];
        int depth = 0;
        for (int k = 0; k < (int)terms.count; k++) {
            sums[depth++] = ((const real*)terms.address[k])[i];
            for (int fold = terms.folds[k]; fold > 0; fold--) {
                depth--;
                sums[depth - 1] += sums[depth];
            }
        }
        total[i] = sums[0];
    }
}
