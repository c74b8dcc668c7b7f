/* The quick search, a part of trellis_body.h: it finds the path of hh_step_ in about half the instructions, or says that
 * it is not sure of the path, which hh_step_ then searches for.
 *
 * The lower bits of a cost, its tag, hold the branch that it came by, so one minimum finds both: a branch takes an
 * addition and a minimum, without a comparison and a selection. The other 16 - tag_bits bits hold the cost, counted from
 * the cheapest group's, and saturate. If x lies beyond all levels, costs of levels are counted from that of the nearest.
 * So a cost here is never more than the true one, less what all paths pay; it is less only if it saturated on its way.
 *
 * hh_is_sure_ adds up the true costs along the path that was found. If the sum never reaches what a tagged cost can hold,
 * nor what the costs of hh_step_ or of the last weight's states can hold, the path costs in both searches what it seems
 * to, and all others cost at least what they seem to. So every branch of the path is the lowest of the cheapest ones for hh_step_, too
 * (docs/decisions/tagged-costs.md).
 */

/* Ways that registers hold, and how many groups at most have their ways in common. */
#define HH_HELD (HH_LANES_T == 32 ? 16 : 8)
#define HH_TOPS 64

/* What a path pays at least at x: 0 up to the outermost levels. */
HH_INLINE HH_V HH_NAME(hh_beyond_)(HH_V x_i16, const hh_levels *levels, int doublings) {
    const HH_V most_i16 = HH_SET1(levels->values[levels->most]), least_i16 = HH_SET1(levels->values[levels->least]);
    return HH_NAME(hh_cost_)(HH_SUBS(x_i16, HH_MIN(HH_MAX(x_i16, least_i16), most_i16)), doublings);
}

/* What every level costs at a weight beyond that, above the bits of a tag. */
HH_INLINE void HH_NAME(hh_tagged_costs_)(const int16_t *x, const hh_levels *levels, int doublings, int tag_bits,
                                         int16_t *level_costs) {
    const HH_V x_i16 = HH_LOAD(x), beyond_i16 = HH_NAME(hh_beyond_)(x_i16, levels, doublings);
    const HH_V cap_i16 = HH_SET1((int16_t)hh_quick_cap(tag_bits));
#pragma GCC unroll 4
    for (int k = levels->least; k <= levels->most; k++) {
        const HH_V cost_i16 = HH_NAME(hh_cost_)(HH_SUBS(x_i16, HH_SET1(levels->values[k])), doublings);
        HH_STORE(level_costs + k * HH_LANES_T, HH_SLL(HH_MIN(HH_SUB(cost_i16, beyond_i16), cap_i16), tag_bits));
    }
}

/* hh_step_ with tagged costs; returns the least of them. If there are more branches than tags, the cheapest of each run
 * of branches that tags tell apart are compared. */
HH_INLINE HH_V HH_NAME(hh_quick_step_)(int bits, int n_bits, int low_bits, int tag_bits, const int16_t *groups,
                                       const uint16_t *places, const int16_t *level_costs, int16_t *to, int16_t *back) {
    const int n_branches = 1 << bits, n_tagged = bits < tag_bits ? n_branches : 1 << tag_bits;
    const int n_held = n_tagged < HH_HELD ? n_tagged : HH_HELD, per_word = 1 << hh_back_shift(bits);
    const int n_tops = 1 << (n_bits - bits - low_bits), n_beside = 1 << hh_beside_bits(bits);
    const int tops_at_once = n_beside > 1 ? 1 : per_word, at_once = tops_at_once * n_beside;
    const ptrdiff_t next_place = (ptrdiff_t)n_branches << low_bits, next_group = (ptrdiff_t)HH_LANES_T << low_bits;
    const HH_V cost_bits_i16 = HH_SET1((int16_t)(0xFFFF << tag_bits)), tag_i16 = HH_SET1((int16_t)(n_tagged - 1));
    HH_V partial_i16[HH_TOPS], which_before_i16[HH_TOPS];
    HH_V word_i16 = HH_SET1(0), least_i16 = HH_SET1(-1);
    unsigned n = 0;
    for (int low = 0; low < 1 << low_bits; low += n_beside) {
        for (int first = 0; first < n_branches; first += n_held) {
            const int is_begin = first % n_tagged == 0, is_end = (first + n_held) % n_tagged == 0;
            const uint16_t *place = places + ((ptrdiff_t)low << bits) + first;
            int16_t *best = to + (ptrdiff_t)low * HH_LANES_T;
            HH_V way_i16[HH_HELD];
#pragma GCC unroll 16
            for (int j = 0; j < n_held * n_beside; j++)
                way_i16[j] = HH_OR(HH_LOAD(groups + (((ptrdiff_t)low << bits) + first + j) * HH_LANES_T),
                                   HH_SET1((int16_t)((first + j) % n_tagged)));
            for (int top = 0; top < n_tops; top += tops_at_once) {
#pragma GCC unroll 4
                for (int i = 0; i < at_once; i++) {
                    const HH_V *const way = way_i16 + i % n_beside * n_branches;
                    const uint16_t *const places_i = place + i / n_beside * next_place + i % n_beside * n_branches;
                    int16_t *const best_i = best + i / n_beside * next_group + i % n_beside * HH_LANES_T;
#define HH_WAY(j) HH_ADDU(way[j], HH_LOAD((const int16_t *)((const char *)level_costs + places_i[j])))
                    HH_V best_i16 = is_begin ? HH_WAY(0) : HH_MINU(partial_i16[top + i], HH_WAY(0));
#pragma GCC unroll 16
                    for (int j = 1; j < n_held; j++) best_i16 = HH_MINU(best_i16, HH_WAY(j));
#undef HH_WAY
                    if (!is_end) {
                        partial_i16[top + i] = best_i16;
                        continue;
                    }
                    HH_V cost_i16 = HH_AND(best_i16, cost_bits_i16), which_i16 = HH_AND(best_i16, tag_i16);
                    if (first >= n_tagged) { /* on a tie the branch before */
                        const HH_V before_i16 = HH_LOAD(best_i);
                        cost_i16 = HH_MINU(cost_i16, before_i16);
                        which_i16 = HH_SELECT(HH_EQ(cost_i16, before_i16), which_before_i16[top + i],
                                              HH_OR(which_i16, HH_SET1((int16_t)(first & -n_tagged))));
                    }
                    HH_STORE(best_i, cost_i16);
                    if (first + n_held < n_branches) {
                        which_before_i16[top + i] = which_i16;
                        continue;
                    }
                    least_i16 = HH_MINU(least_i16, cost_i16);
                    word_i16 = HH_OR(HH_SLL(word_i16, hh_back_width(bits)), which_i16);
                }
                place += tops_at_once * next_place, best += tops_at_once * next_group, n += (unsigned)at_once;
                if (first + n_held == n_branches && n % (unsigned)per_word == 0)
                    HH_STORE(back, word_i16), back += HH_LANES_T;
            }
        }
    }
    return least_i16;
}

/* Whether hh_step_ would have found the path of search.path. `groups` holds the costs of weight start + 1 without tags. */
HH_KERNEL int HH_NAME(hh_is_sure_)(const hh_search *search, ptrdiff_t start, ptrdiff_t stop, int tag_bits,
                                   const int16_t *groups) {
    const hh_levels *const levels = search->levels;
    const int cap = hh_quick_cap(tag_bits), mask = (1 << (search->n_bits - hh_step_bits(start + 1, search->rate))) - 1;
    const int16_t lowest = levels->values[levels->least], topmost = levels->values[levels->most];
    int highest = 0;
    for (int lane = 0; lane < HH_LANES_T; lane++) {
        const int is_held = search->ends && search->ends->last[lane] >= 0;
        const ptrdiff_t end = is_held && search->ends->end[lane] < stop ? search->ends->end[lane] : stop - 1;
        const uint16_t *const path = search->path + lane;
        int cost = groups[(ptrdiff_t)(path[(start + 1) * HH_LANES_T] & mask) * HH_LANES_T + lane] - INT16_MIN;
        int beyond = 0; /* what all paths pay since costs were brought down */
        highest = cost > highest ? cost : highest;
        for (ptrdiff_t t = start + 2; t <= end; t++) {
            const int16_t x = search->x[(t - 1) * HH_LANES_T + lane];
            const int16_t value = levels->values[levels->of[path[(t - 1) * HH_LANES_T]]];
            const int is_beyond = x < lowest || x > topmost;
            const int least = is_beyond ? hh_beyond_scalar_(x, levels, search->doublings) : 0;
            cost += hh_cost_scalar(hh_saturate_i16_(x - value), search->doublings) - least, beyond += least;
            /* hh_step_ counts what all paths pay and what this one pays, and brings 32767 down at a time */
            if (beyond > INT16_MAX - cap) highest = INT16_MAX;
            highest = cost > highest ? cost : highest;
            if (t % HH_RENORMALISE) continue;
            cost -= (uint16_t)search->down[t / HH_RENORMALISE * HH_LANES_T + lane] >> tag_bits, beyond = 0;
        }
        if (end < stop - 1) continue;
        /* hh_quick_ adds the costs of the last weight's levels as they are, to costs from 0 on, up to INT16_MAX */
        const int16_t value = levels->values[levels->of[path[end * HH_LANES_T]]];
        const int16_t apart = hh_saturate_i16_(search->x[end * HH_LANES_T + lane] - value);
        if (cost + hh_cost_scalar(apart, search->doublings) >= INT16_MAX) highest = INT16_MAX;
    }
    return highest < cap;
}

/* The search of hh_search_ from weight start + 1 on, whose costs are in `groups`. Returns 0 if the path is not sure; then
 * `groups` is as it was. */
HH_KERNEL int HH_NAME(hh_quick_)(const hh_search *search, ptrdiff_t start, ptrdiff_t stop, const int16_t *groups) {
    const int rate = search->rate, n_bits = search->n_bits, tag_bits = hh_tag_bits(rate);
    if (stop - start < 3 || 2 * ((rate + 15) / 16) > n_bits) return 0;
    int16_t *from = search->costs, *to = from + ((ptrdiff_t)3 << (n_bits - 1)) * HH_LANES_T;
    const int before = hh_step_bits(start + 1, rate);
    const HH_V cap_i16 = HH_SET1((int16_t)hh_quick_cap(tag_bits));
    for (int g = 0; g < 1 << (n_bits - before); g++) {
        const HH_V cost_i16 = HH_SUBS(HH_LOAD(groups + g * HH_LANES_T), HH_SET1(INT16_MIN));
        HH_STORE(from + g * HH_LANES_T, HH_SLL(HH_MIN(cost_i16, cap_i16), tag_bits));
    }
    for (ptrdiff_t t = start + 2; t < stop; t++) {
        const int bits = hh_step_bits(t, rate), low_bits = HH_NAME(hh_low_bits_)(t, start, rate, n_bits);
        int16_t *const back = search->back + t * hh_back_words(rate, n_bits) * HH_LANES_T;
        HH_V least_i16 = HH_SET1(0);
        HH_NAME(hh_tagged_costs_)(search->x + (t - 1) * HH_LANES_T, search->levels, search->doublings, tag_bits,
                                  search->level_costs);
        switch (8 * bits + tag_bits) { /* constants unroll */
#define HH_CASE(b, tag)                                                                             \
    case 8 * b + tag:                                                                               \
        least_i16 = HH_NAME(hh_quick_step_)(b, n_bits, low_bits, tag, from, search->levels->places, \
                                            search->level_costs, to, back);                         \
        break;
            HH_CASE(1, 2)
            HH_CASE(2, 2)
            HH_CASE(2, 3)
            HH_CASE(3, 3)
            HH_CASE(3, 4)
            HH_CASE(4, 3)
            HH_CASE(4, 4)
            HH_CASE(5, 3)
            HH_CASE(5, 4)
            HH_CASE(6, 4)
#undef HH_CASE
        }
        if (t % HH_RENORMALISE == 0) {
            HH_STORE(search->down + t / HH_RENORMALISE * HH_LANES_T, least_i16);
            for (int g = 0; g < 1 << (n_bits - bits); g++)
                HH_STORE(to + g * HH_LANES_T, HH_SUB(HH_LOAD(to + g * HH_LANES_T), least_i16));
        }
        int16_t *const swap = from;
        from = to, to = swap;
    }
    const int bits = hh_step_bits(stop - 1, rate);
    for (int g = 0; g < 1 << (n_bits - bits); g++)
        HH_STORE(from + g * HH_LANES_T, HH_SRL(HH_LOAD(from + g * HH_LANES_T), tag_bits));
    HH_NAME(hh_level_costs_)(search->x + (stop - 1) * HH_LANES_T, search->levels, search->doublings,
                             search->level_costs);
    unsigned state[HH_LANES_T];
    HH_NAME(hh_cheapest_)(
        (HH_NAME(hh_reached_)){from, (1 << (n_bits - bits)) - 1, search->levels->of, search->level_costs}, n_bits,
        state);
    HH_NAME(hh_trace_)(search, start, stop, state);
    return HH_NAME(hh_is_sure_)(search, start, stop, tag_bits, groups);
}

#undef HH_HELD
#undef HH_TOPS
