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

/* How many lower bits of a group's number its ways depend on, at weight t of a search that began at weight `start`. */
HH_INLINE int HH_NAME(hh_low_bits_)(ptrdiff_t t, ptrdiff_t start, int rate, int n_bits) {
    const int before = t - 1 == start ? 0 : hh_step_bits(t - 1, rate);
    const int low_bits = n_bits - before - hh_step_bits(t, rate);
    return low_bits < 0 ? 0 : low_bits;
}

/* One step of `bits` new bits: to `to` the cheapest way into each group of 2^bits states, to `back` its branch. Groups
 * are taken in the order of their `low_bits` lower bits, those that share these one after another, and few that lie
 * beside each other together. If `apart` is set,
 * there are fewer groups before the step than branches, and no run of them serves all branches. */
HH_INLINE void HH_NAME(hh_step_)(int bits, int n_bits, int low_bits, int apart, int renormalise,
                                 HH_NAME(hh_reached_) reached, int16_t *to, int16_t *back) {
    const int n_groups = 1 << (n_bits - bits), n_branches = 1 << bits, n_tops = n_groups >> low_bits;
    const int n_beside = 1 << hh_beside_bits(bits);
    const int width = hh_back_width(bits), slots = (1 << hh_back_shift(bits)) - 1;
    HH_V word_i16 = HH_SET1(0), least_i16 = HH_SET1(INT16_MAX);
    for (int n = 0; n < n_groups; n++) {
        const int top = n / n_beside % n_tops, low = n / (n_beside * n_tops) * n_beside + n % n_beside;
        const int g = top << low_bits | low, first = g << bits;
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
        word_i16 = HH_OR(HH_SLL(word_i16, width), which_i16);
        if ((n & slots) == slots) HH_STORE(back + (ptrdiff_t)(n >> hh_back_shift(bits)) * HH_LANES_T, word_i16);
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

/* The path of weights `start` to `stop` into search.path, from the states of weight stop - 1, and to `state` those of
 * weight `start`. If that is not the first weight, search.path keeps there what was settled. */
HH_KERNEL void HH_NAME(hh_trace_)(const hh_search *search, ptrdiff_t start, ptrdiff_t stop, unsigned *state) {
    const int n_bits = search->n_bits;
    for (ptrdiff_t t = stop - 1;; t--) {
        for (int lane = 0; lane < HH_LANES_T && search->ends; lane++)
            if (search->ends->last[lane] >= 0 && t == search->ends->end[lane])
                state[lane] = (unsigned)search->ends->last[lane];
        for (int lane = 0; lane < HH_LANES_T && (t > start || !start); lane++)
            search->path[t * HH_LANES_T + lane] = (uint16_t)state[lane];
        if (t == start) return;
        const int bits = hh_step_bits(t, search->rate),
                  low_bits = HH_NAME(hh_low_bits_)(t, start, search->rate, n_bits);
        const int width = hh_back_width(bits), shift = hh_back_shift(bits), top_bits = n_bits - bits - low_bits;
        const int beside_bits = hh_beside_bits(bits);
        const unsigned beside = (1u << beside_bits) - 1u;
        const unsigned groups = (1u << (n_bits - bits)) - 1u, branches = (1u << bits) - 1u, slots = (1u << shift) - 1u;
        const int16_t *const back = search->back + t * hh_back_words(search->rate, n_bits) * HH_LANES_T;
        for (int lane = 0; lane < HH_LANES_T; lane++) {
            const unsigned g = state[lane] & groups;
            const unsigned low = g & ((1u << low_bits) - 1u);
            const unsigned n = (low >> beside_bits << top_bits | g >> low_bits) << beside_bits | (low & beside);
            const unsigned word = (uint16_t)back[(ptrdiff_t)(n >> shift) * HH_LANES_T + lane];
            state[lane] = g << bits | (word >> ((slots - (n & slots)) * (unsigned)width) & branches);
        }
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

/* The costs of all states at weight t, where any other than that of search.path costs the most there is. */
HH_INLINE void HH_NAME(hh_stand_)(const hh_search *search, ptrdiff_t t) {
    const uint16_t *const settled = search->path + t * HH_LANES_T;
    for (ptrdiff_t s = 0; s < (ptrdiff_t)1 << search->n_bits; s++)
        HH_STORE(search->costs + s * HH_LANES_T, HH_SET1(INT16_MAX));
    for (int lane = 0; lane < HH_LANES_T; lane++)
        search->costs[(ptrdiff_t)settled[lane] * HH_LANES_T + lane] = INT16_MIN;
}

/* Settle the block [from, to): the path that search.path holds is kept there, its errors go to the targets from `to`
 * on, and the search is back at weight to - 1. */
HH_INLINE void HH_NAME(hh_settle_)(const hh_search *search, ptrdiff_t from, ptrdiff_t to, hh_feedback feedback) {
    const hh_levels *const levels = search->levels;
    for (ptrdiff_t i = 0; i < (to - from) * HH_LANES_T; i++)
        feedback.errors[i] = feedback.targets[from * HH_LANES_T + i] -
                             (float)levels->values[levels->of[search->path[from * HH_LANES_T + i]]];
    for (ptrdiff_t j = to; j < search->n_cols; j++) {
        const float *const share = feedback.matrix + j * search->n_cols + from;
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
    HH_NAME(hh_stand_)(search, to - 1);
}

/* The costs of all states at the first weight, where lanes may be held to one of them. */
HH_INLINE void HH_NAME(hh_begin_)(const hh_search *search) {
    const int n_states = 1 << search->n_bits;
    HH_NAME(hh_level_costs_)(search->x, search->levels, search->doublings, search->level_costs);
    for (int s = 0; s < n_states; s++)
        HH_STORE(
            search->costs + (ptrdiff_t)s * HH_LANES_T,
            HH_ADDS(HH_SET1(INT16_MIN), HH_LOAD(search->level_costs + (ptrdiff_t)search->levels->of[s] * HH_LANES_T)));
    for (int lane = 0; lane < HH_LANES_T && search->ends; lane++)
        for (int s = 0; s < n_states && search->ends->first[lane] >= 0; s++)
            search->costs[(ptrdiff_t)s * HH_LANES_T + lane] = s == search->ends->first[lane] ? INT16_MIN : INT16_MAX;
}

/* The step to weight t from what is reached at the weight before; returns what is reached then, in `to`. */
HH_INLINE HH_NAME(hh_reached_) HH_NAME(hh_advance_)(const hh_search *search, ptrdiff_t start, ptrdiff_t t,
                                                    HH_NAME(hh_reached_) reached, int16_t *to) {
    const int n_bits = search->n_bits, bits = hh_step_bits(t, search->rate), renormalise = t % HH_RENORMALISE == 0;
    const int low_bits = HH_NAME(hh_low_bits_)(t, start, search->rate, n_bits);
    int16_t *const back = search->back + t * hh_back_words(search->rate, n_bits) * HH_LANES_T;
    if (reached.level_costs && (reached.mask + 1) >> bits) {
        switch (bits) { /* a constant number of branches unrolls */
#define HH_CASE(b)                                                                 \
    case b:                                                                        \
        HH_NAME(hh_step_)(b, n_bits, low_bits, 0, renormalise, reached, to, back); \
        break;
            HH_CASE(1) HH_CASE(2) HH_CASE(3) HH_CASE(4) HH_CASE(5) HH_CASE(6)
#undef HH_CASE
        }
    } else {
        HH_NAME(hh_step_)(bits, n_bits, low_bits, 1, renormalise, reached, to, back);
    }
    HH_NAME(hh_level_costs_)(search->x + t * HH_LANES_T, search->levels, search->doublings, search->level_costs);
    return (HH_NAME(hh_reached_)){to, (1 << (n_bits - bits)) - 1, search->levels->of, search->level_costs};
}

#if HH_LANES_T > 1
#include "trellis_quick.h"
#endif

/* Search the weights `start` to `stop`, from the costs of all states at weight `start` in search.costs, and put the
 * cheapest path into search.path. */
HH_INLINE void HH_NAME(hh_search_)(const hh_search *search, ptrdiff_t start, ptrdiff_t stop) {
    const int n_states = 1 << search->n_bits;
    int16_t *const costs = search->costs, *const other = costs + (ptrdiff_t)n_states * HH_LANES_T;
    HH_NAME(hh_reached_) reached = {costs, n_states - 1, search->levels->of, NULL};
    unsigned state[HH_LANES_T];
    if (stop - start > 1) reached = HH_NAME(hh_advance_)(search, start, start + 1, reached, other);
#if HH_LANES_T > 1
    if (HH_NAME(hh_quick_)(search, start, stop, other)) return;
    if (stop - start > 1)
        HH_NAME(hh_level_costs_)(search->x + (start + 1) * HH_LANES_T, search->levels, search->doublings,
                                 search->level_costs);
#endif
    for (ptrdiff_t t = start + 2; t < stop; t++)
        reached = HH_NAME(hh_advance_)(search, start, t, reached, (t - start) % 2 ? other : costs);
    HH_NAME(hh_cheapest_)(reached, search->n_bits, state);
    HH_NAME(hh_trace_)(search, start, stop, state);
}

/* Search the weights `start` to `stop` once more, for the ways into every state that hh_step_ finds: the quick search
 * knows those of its own path alone. */
HH_INLINE void HH_NAME(hh_search_all_)(const hh_search *search, ptrdiff_t start, ptrdiff_t stop) {
    const int n_states = 1 << search->n_bits;
    HH_NAME(hh_reached_) reached = {search->costs, n_states - 1, search->levels->of, NULL};
    if (start) HH_NAME(hh_stand_)(search, start);
    else HH_NAME(hh_begin_)(search);
    for (ptrdiff_t t = start + 1; t < stop; t++)
        reached = HH_NAME(hh_advance_)(search, start, t, reached,
                                       search->costs + ((t - start) % 2 ? (ptrdiff_t)n_states * HH_LANES_T : 0));
}

/* Encode HH_LANES_T rows, whose targets are in search.x, filled here if there is feedback: their states come out in
 * search.path. Of a lane that is held at a weight, states after that weight say nothing. */
HH_KERNEL void HH_NAME(hh_viterbi_)(const hh_search *search, hh_feedback feedback) {
    const ptrdiff_t n_cols = search->n_cols, block = HH_FEEDBACK_BLOCK;
    if (!feedback.matrix) {
        HH_NAME(hh_begin_)(search);
        HH_NAME(hh_search_)(search, 0, n_cols);
        return;
    }
    for (ptrdiff_t settled = 0;; settled += block) {
        const ptrdiff_t ahead = settled + block + HH_FEEDBACK_AHEAD, stop = ahead < n_cols ? ahead : n_cols;
        HH_NAME(hh_aim_)(feedback.targets, settled, stop, search->x);
        if (!settled) HH_NAME(hh_begin_)(search);
        HH_NAME(hh_search_)(search, settled ? settled - 1 : 0, stop);
        if (n_cols - settled <= block) break;
        HH_NAME(hh_settle_)(search, settled, settled + block, feedback);
    }
    /* blocks once more, from the last: where costs saturate, a path may not begin at the state that was settled */
    unsigned state[HH_LANES_T];
    int is_settled = 1;
    for (int lane = 0; lane < HH_LANES_T; lane++) state[lane] = search->path[(n_cols - 1) * HH_LANES_T + lane];
    for (ptrdiff_t from = (n_cols - 1) / block * block, stop = n_cols; from >= 0; stop = from, from -= block) {
        const ptrdiff_t start = from ? from - 1 : 0;
        if (!is_settled) HH_NAME(hh_search_all_)(search, start, stop);
        HH_NAME(hh_trace_)(search, start, stop, state);
        is_settled = 1;
        for (int lane = 0; lane < HH_LANES_T; lane++)
            is_settled &= state[lane] == search->path[start * HH_LANES_T + lane];
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
#undef HH_AND
#undef HH_MAX
#undef HH_EQ
#undef HH_MINU
#undef HH_ADDU
#undef HH_SUB
#undef HH_SRL
#undef HH_F
#undef HH_LANES_F
#undef HH_LOADF
#undef HH_STOREF
#undef HH_ADDF
#undef HH_MULF
