/* The row-parallel Viterbi search of trellis.h, once for every tier.
 *
 * Included with HH_LANES_T rows a vector and these names defined: HH_V (vector of int16), HH_NAME(x)
 * (x with the tier's suffix), HH_LOAD, HH_STORE, HH_SET1, HH_SUBS, HH_ADDS (saturating), HH_MULHI,
 * HH_MIN, HH_LT (a mask), HH_SELECT(mask, yes, no), HH_SLL, HH_OR; and of float32, HH_LANES_F a vector: HH_F, HH_LOADF,
 * HH_STOREF, HH_ADDF, HH_MULF(number, vector). The end takes them all away again.
 * Lanes never meet, so a row's bits do not depend on how many travel together.
 */

/* What an error costs. Doubled errors saturate; the plain square still tells those apart (without it up to
 * 18 % of rows fell to half their quality at 5 bits and 256 states). */
HH_INLINE HH_V HH_NAME(hh_cost_)(HH_V apart_i16, int doublings) {
    HH_V wide_i16 = apart_i16;
    for (int d = 0; d < doublings; d++) wide_i16 = HH_ADDS(wide_i16, wide_i16);
    const HH_V cost_i16 = HH_MULHI(wide_i16, wide_i16);
    return doublings ? HH_ADDS(cost_i16, HH_MULHI(apart_i16, apart_i16)) : cost_i16;
}

/* What a search knows of the states of a weight. States with the same s & mask are one group: `groups` holds what the
 * cheapest way to each group costs, and `level_costs` what a level costs on top; levels[s] is the number of a state's
 * level. If `level_costs` is NULL, the groups are single states and their costs are whole.
 *
 * No step writes the costs of all states: 4096 of them take 256 KiB with 16 lanes, while the 256 groups of a step of 4
 * bits and the costs of 256 levels take 16 KiB and stay in the first cache (docs/decisions/search-in-the-first-cache.md).
 */
typedef struct {
    const int16_t *groups;
    int mask;
    const uint8_t *levels;
    const int16_t *level_costs; /* [256][HH_LANES_T] */
} HH_NAME(hh_reached_);

/* The cost of the j-th state from s on, where `way` is the group of s. */
HH_INLINE HH_V HH_NAME(hh_next_cost_)(HH_NAME(hh_reached_) reached, const int16_t *way, const uint8_t *levels, int j) {
    const HH_V way_i16 = HH_LOAD(way + (ptrdiff_t)j * HH_LANES_T);
    if (!reached.level_costs) return way_i16;
    return HH_ADDS(way_i16, HH_LOAD(reached.level_costs + (ptrdiff_t)levels[j] * HH_LANES_T));
}

/* The cost of state s. */
HH_INLINE HH_V HH_NAME(hh_state_cost_)(HH_NAME(hh_reached_) reached, int s) {
    const int16_t *const way = reached.groups + (ptrdiff_t)(s & reached.mask) * HH_LANES_T;
    return HH_NAME(hh_next_cost_)(reached, way, reached.levels + s, 0);
}

/* What every level costs at a weight. */
HH_INLINE void HH_NAME(hh_level_costs_)(const int16_t *x, const hh_levels *levels, int doublings,
                                        int16_t *level_costs) {
    const HH_V x_i16 = HH_LOAD(x);
    for (int k = levels->least; k <= levels->most; k++)
        HH_STORE(level_costs + k * HH_LANES_T,
                 HH_NAME(hh_cost_)(HH_SUBS(x_i16, HH_SET1(levels->values[k])), doublings));
}

/* One step of `bits` new bits: to `to` the cheapest way into each group of 2^bits states, to `back` its branch. If `apart`
 * is set, there are fewer groups before the step than branches, and no run of them serves all branches. */
HH_INLINE void HH_NAME(hh_step_)(int bits, int n_bits, int apart, int renormalise, HH_NAME(hh_reached_) reached,
                                 int16_t *to, int16_t *back) {
    const int n_groups = 1 << (n_bits - bits), n_branches = 1 << bits;
    const int width = hh_back_width(bits), per_word = 16 / width;
    HH_V word_i16 = HH_SET1(0), least_i16 = HH_SET1(INT16_MAX);
    for (int g = 0; g < n_groups; g++) {
        const int first = g << bits;
        const int16_t *const way = reached.groups + (ptrdiff_t)(first & reached.mask) * HH_LANES_T;
        const uint8_t *const levels = reached.levels + first;
        HH_V best_i16 = HH_NAME(hh_next_cost_)(reached, way, levels, 0), which_i16 = HH_SET1(0);
        for (int j = 1; j < n_branches; j++) {
            const HH_V cost_i16 =
                apart ? HH_NAME(hh_state_cost_)(reached, first + j) : HH_NAME(hh_next_cost_)(reached, way, levels, j);
            which_i16 = HH_SELECT(HH_LT(cost_i16, best_i16), HH_SET1((int16_t)j), which_i16);
            best_i16 = HH_MIN(best_i16, cost_i16);
        }
        HH_STORE(to + (ptrdiff_t)g * HH_LANES_T, best_i16);
        if (renormalise) least_i16 = HH_MIN(least_i16, best_i16);
        const int slot = g % per_word;
        word_i16 = HH_OR(word_i16, HH_SLL(which_i16, slot * width));
        if (slot == per_word - 1 || g == n_groups - 1) {
            HH_STORE(back + (ptrdiff_t)(g / per_word) * HH_LANES_T, word_i16);
            word_i16 = HH_SET1(0);
        }
    }
    if (!renormalise) return;
    const HH_V down_i16 = HH_SUBS(least_i16, HH_SET1(INT16_MIN)); /* the least cost becomes INT16_MIN again */
    for (int g = 0; g < n_groups; g++)
        HH_STORE(to + (ptrdiff_t)g * HH_LANES_T, HH_SUBS(HH_LOAD(to + (ptrdiff_t)g * HH_LANES_T), down_i16));
}

/* The cheapest of 2^n_bits states in every lane, the lowest on a tie. */
HH_INLINE void HH_NAME(hh_cheapest_)(HH_NAME(hh_reached_) reached, int n_bits, unsigned *state) {
    HH_V best_i16 = HH_NAME(hh_state_cost_)(reached, 0), which_i16 = HH_SET1(0);
    for (int s = 1; s < 1 << n_bits; s++) {
        const HH_V cost_i16 = HH_NAME(hh_state_cost_)(reached, s);
        which_i16 = HH_SELECT(HH_LT(cost_i16, best_i16), HH_SET1((int16_t)s), which_i16);
        best_i16 = HH_MIN(best_i16, cost_i16);
    }
    int16_t which[HH_LANES_T];
    HH_STORE(which, which_i16);
    for (int lane = 0; lane < HH_LANES_T; lane++) state[lane] = (unsigned)which[lane];
}

/* From the states of weight t to those of weight t - 1; the branches taken on the way go to `branches` unless NULL. */
HH_INLINE void HH_NAME(hh_step_back_)(ptrdiff_t t, int rate, int n_bits, const int16_t *back, ptrdiff_t back_words,
                                      unsigned *state, uint8_t *branches) {
    const int bits = (int)(hh_bit_offset(t, rate) - hh_bit_offset(t - 1, rate));
    const int width = hh_back_width(bits), shift = hh_back_shift(bits);
    const unsigned groups = (1u << (n_bits - bits)) - 1u, low = (1u << bits) - 1u, slots = (1u << shift) - 1u;
    const int16_t *const step_back = back + t * back_words * HH_LANES_T;
    for (int lane = 0; lane < HH_LANES_T; lane++) {
        const unsigned g = state[lane] & groups;
        const unsigned word = (uint16_t)step_back[(ptrdiff_t)(g >> shift) * HH_LANES_T + lane];
        const unsigned branch = (word >> ((g & slots) * (unsigned)width)) & low;
        if (branches) branches[lane] = (uint8_t)branch;
        state[lane] = (g << bits) | branch;
    }
}

/* Targets [from, to) as int16 into x, rint by adding 1.5 * 2^23. */
HH_INLINE void HH_NAME(hh_aim_)(const float *targets, ptrdiff_t from, ptrdiff_t to, int16_t *x) {
    for (ptrdiff_t i = from * HH_LANES_T; i < to * HH_LANES_T; i++) {
        float held = targets[i] > -32767.0f ? targets[i] : -32767.0f;
        held = held < 32767.0f ? held : 32767.0f;
        x[i] = (int16_t)((held + 12582912.0f) - 12582912.0f);
    }
}

/* Settle the block [from, to): the path of the cheapest state of weight t - 1 is kept, the errors on it go to the
 * targets from `to` on, and the search is back at weight to - 1, where any other state costs the most there is. */
HH_INLINE void HH_NAME(hh_settle_)(ptrdiff_t from, ptrdiff_t to, ptrdiff_t t, ptrdiff_t n_cols, int rate, int n_bits,
                                   const hh_levels *levels, HH_NAME(hh_reached_) reached, int16_t *costs,
                                   const int16_t *back, ptrdiff_t back_words, hh_feedback feedback) {
    unsigned state[HH_LANES_T], settled[HH_LANES_T] = {0};
    HH_NAME(hh_cheapest_)(reached, n_bits, state);
    for (ptrdiff_t s = t - 1; s >= from; s--) {
        for (int lane = 0; lane < HH_LANES_T && s < to; lane++) {
            if (s == to - 1) settled[lane] = state[lane];
            feedback.errors[(s - from) * HH_LANES_T + lane] =
                feedback.targets[s * HH_LANES_T + lane] - (float)levels->values[levels->of[state[lane]]];
        }
        if (s > from) HH_NAME(hh_step_back_)(s, rate, n_bits, back, back_words, state, NULL);
    }
    for (ptrdiff_t j = to; j < n_cols; j++) {
        const float *const share = feedback.matrix + j * n_cols + from;
        float *const target = feedback.targets + j * HH_LANES_T;
        HH_F held[HH_LANES_T / HH_LANES_F];
        for (int v = 0; v < HH_LANES_T / HH_LANES_F; v++) held[v] = HH_LOADF(target + v * HH_LANES_F);
        for (ptrdiff_t k = 0; k < to - from; k++) {
            const float *const error = feedback.errors + k * HH_LANES_T;
            for (int v = 0; v < HH_LANES_T / HH_LANES_F; v++)
                held[v] = HH_ADDF(held[v], HH_MULF(share[k], HH_LOADF(error + v * HH_LANES_F)));
        }
        for (int v = 0; v < HH_LANES_T / HH_LANES_F; v++) HH_STOREF(target + v * HH_LANES_F, held[v]);
    }
    for (ptrdiff_t s = 0; s < (ptrdiff_t)1 << n_bits; s++) HH_STORE(costs + s * HH_LANES_T, HH_SET1(INT16_MAX));
    for (int lane = 0; lane < HH_LANES_T; lane++) costs[(ptrdiff_t)settled[lane] * HH_LANES_T + lane] = INT16_MIN;
}

/* The costs of all states at the first weight, where lanes may be held to one of them. */
HH_INLINE void HH_NAME(hh_hold_)(const int *first, int n_states, HH_NAME(hh_reached_) reached, int16_t *costs) {
    for (int s = n_states - 1; s >= 0; s--)
        HH_STORE(costs + (ptrdiff_t)s * HH_LANES_T, HH_NAME(hh_state_cost_)(reached, s));
    for (int lane = 0; lane < HH_LANES_T; lane++)
        for (int s = 0; s < n_states && first[lane] >= 0; s++)
            costs[(ptrdiff_t)s * HH_LANES_T + lane] = s == first[lane] ? INT16_MIN : INT16_MAX;
}

/* Encode HH_LANES_T rows: x is [n_cols][HH_LANES_T], filled here where there is feedback; bits come out as one uint8 a
 * step and lane. `ends`, where it is not NULL, holds them to states: of a lane that is held at weight `end`, steps after
 * that weight say nothing. */
HH_KERNEL void HH_NAME(hh_viterbi_)(int16_t *x, ptrdiff_t n_cols, int rate, int n_bits, int doublings,
                                    const hh_levels *levels, int16_t *costs, int16_t *level_costs, int16_t *back,
                                    ptrdiff_t back_words, hh_feedback feedback, const hh_ends *ends, uint8_t *steps,
                                    uint16_t *last) {
    const ptrdiff_t n_states = (ptrdiff_t)1 << n_bits;
    const ptrdiff_t block = feedback.matrix ? HH_FEEDBACK_BLOCK : n_cols,
                    ahead = feedback.matrix ? HH_FEEDBACK_AHEAD : 0;
    int16_t *from = costs, *to = costs + n_states * HH_LANES_T;
    HH_NAME(hh_reached_) reached = {from, 0, levels->of, level_costs};
    for (ptrdiff_t settled = 0, t = 0;; settled += block) {
        const ptrdiff_t stop = n_cols - settled > block + ahead ? settled + block + ahead : n_cols;
        if (feedback.matrix) HH_NAME(hh_aim_)(feedback.targets, settled, stop, x);
        for (; t < stop; t++) {
            if (t == 0) {
                HH_STORE(from, HH_SET1(INT16_MIN));
                HH_NAME(hh_level_costs_)(x, levels, doublings, level_costs);
                if (!ends) continue;
                HH_NAME(hh_hold_)(ends->first, (int)n_states, reached, to);
                reached = (HH_NAME(hh_reached_)){to, (int)n_states - 1, levels->of, NULL};
                int16_t *const swap = from;
                from = to, to = swap;
                continue;
            }
            const int bits = (int)(hh_bit_offset(t, rate) - hh_bit_offset(t - 1, rate));
            const int renormalise = t % HH_RENORMALISE == 0;
            int16_t *const step_back = back + t * back_words * HH_LANES_T;
            if (reached.level_costs && (reached.mask + 1) >> bits) {
                switch (bits) { /* a constant number of branches unrolls */
#define HH_CASE(b)                                                            \
    case b:                                                                   \
        HH_NAME(hh_step_)(b, n_bits, 0, renormalise, reached, to, step_back); \
        break;
                    HH_CASE(1) HH_CASE(2) HH_CASE(3) HH_CASE(4) HH_CASE(5) HH_CASE(6)
#undef HH_CASE
                }
            } else {
                HH_NAME(hh_step_)(bits, n_bits, 1, renormalise, reached, to, step_back);
            }
            HH_NAME(hh_level_costs_)(x + t * HH_LANES_T, levels, doublings, level_costs);
            reached = (HH_NAME(hh_reached_)){to, (1 << (n_bits - bits)) - 1, levels->of, level_costs};
            int16_t *const swap = from;
            from = to, to = swap;
        }
        if (n_cols - settled <= block) break;
        t = settled + block;
        HH_NAME(hh_settle_)(settled, t, stop, n_cols, rate, n_bits, levels, reached, from, back, back_words, feedback);
        reached = (HH_NAME(hh_reached_)){from, (int)n_states - 1, levels->of, NULL};
    }
    unsigned state[HH_LANES_T];
    HH_NAME(hh_cheapest_)(reached, n_bits, state);
    for (int lane = 0; lane < HH_LANES_T; lane++) last[lane] = (uint16_t)state[lane];
    for (ptrdiff_t t = n_cols - 1; t > 0; t--) {
        for (int lane = 0; lane < HH_LANES_T && ends; lane++)
            if (ends->last[lane] >= 0 && t == ends->end[lane]) state[lane] = (unsigned)ends->last[lane];
        HH_NAME(hh_step_back_)(t, rate, n_bits, back, back_words, state, steps + t * HH_LANES_T);
    }
}

#undef HH_LANES_T
#undef HH_V
#undef HH_NAME
#undef HH_LOAD
#undef HH_STORE
#undef HH_SET1
#undef HH_SUBS
#undef HH_ADDS
#undef HH_MULHI
#undef HH_MIN
#undef HH_LT
#undef HH_SELECT
#undef HH_SLL
#undef HH_OR
#undef HH_F
#undef HH_LANES_F
#undef HH_LOADF
#undef HH_STOREF
#undef HH_ADDF
#undef HH_MULF
