/* One decoding step of a language model: the newest tokens of each text of a batch.

   `native.py` compiles it and mirrors its structs; `decoding.py` calls it.
   Weights and cached keys and values are read in their stored type; all sums are fp32. A token is
   a row of all products. A row's result does not depend on the other rows: each of its sums has
   the same order in any batch, and the same for a token that comes alone and one among others. */

#include <omp.h>

#include "products.h"

enum { NO_NORM, RMS_NORM, LAYER_NORM };

typedef struct {
    const void *weight; /* [outputs, inputs]; NULL: there is no such matrix */
    const float *scale, *bias; /* [outputs], or NULL */
    int64_t outputs, type;
} matrix;

typedef struct {
    const float *weight, *bias; /* [size], or NULL */
    int64_t kind, size;
    double epsilon;
} norm;

typedef struct {
    norm before_attention, query_norm, key_norm, after_attention, before_mlp, after_mlp;
    matrix query, key, value, output, gate, up, down;
    const float *rotation; /* [positions, 2, rotated]: cosines and sines, or NULL */
    int64_t heads, key_heads, head_size, rotated, window, activation;
    double scale, softcap, residual_multiplier; /* window and softcap: 0 for none */
} layer;

typedef struct {
    const layer *layers;
    norm last_norm;
    matrix head;
    int64_t n_layers, hidden_size;
} model;

typedef struct {
    float *states;         /* [texts, tokens, hidden size]: the embeddings; overwritten */
    float *logits;         /* [texts, tokens, vocabulary] */
    float *workspace;      /* of `workspace_size` */
    const int64_t *begins; /* [texts]: first column that each text sees */
    void *const *keys, *const *values; /* of each layer: [texts, key heads, room, head size] */
    int64_t texts, tokens, column, room, cache_type, threads; /* column of the first new token */
} step;

/* Bytes in which each thread packs the inputs of a product. */
static int64_t packing_size(const model *m, int64_t rows) {
    int64_t most = m->hidden_size;
    for (int64_t i = 0; i < m->n_layers; i++) {
        const layer *l = m->layers + i;
        if (l->query.outputs > most) most = l->query.outputs;
        if (l->up.outputs > most) most = l->up.outputs;
    }
    return rows * packed_size(most);
}

/* y [rows, outputs] = x [rows, inputs] W^T, scaled, plus bias; the team shares the outputs. */
static void linear(float *y, const float *x, int64_t rows, int64_t inputs, const matrix *m,
                   char *packing) {
    const int64_t wide = 32, parts = (m->outputs + wide - 1) / wide;
    const int packed = packed_kind(m->type), is_packed = packed != FLOAT32;
    const int64_t x_stride = is_packed ? packed_size(inputs) : 4 * inputs;
    const void *from = is_packed ? (const void *)packing : x;
    if (is_packed) pack(packing, x, rows, inputs, m->type);
#pragma omp for schedule(static) nowait
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = part * wide, width = least(wide, m->outputs - first);
        const char *weight = (const char *)m->weight + first * inputs * size_of(m->type);
        products(y + first, m->outputs, from, x_stride, rows, weight, inputs, width,
                 is_packed ? packed : m->type);
        if (!m->scale && !m->bias) continue;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = first; o < first + width; o++) {
                float *value = y + r * m->outputs + o;
                if (m->scale) *value *= m->scale[o];
                if (m->bias) *value += m->bias[o];
            }
    }
}

/* ---- one row ---- */

/* Normalises each `n->size` values of the `count` in place or elsewhere. */
static void normalize(float *to, const float *from, int64_t count, const norm *n) {
    if (n->kind == NO_NORM) {
        if (to != from) memcpy(to, from, 4 * count);
        return;
    }
    for (int64_t first = 0; first < count; first += n->size) {
        const float *x = from + first;
        float mean = 0.0f;
        if (n->kind == LAYER_NORM) {
            lanes total = {0};
            for (int64_t i = 0; i < n->size; i += LANES)
                total += load(x + i, least(n->size - i, LANES), FLOAT32);
            mean = sum(total) / n->size;
        }
        lanes squares = {0};
        for (int64_t i = 0; i < n->size; i += LANES) {
            const int64_t left = least(n->size - i, LANES);
            lanes centred = load(x + i, left, FLOAT32) - mean;
            for (int64_t j = left; j < LANES; j++) centred[j] = 0.0f;
            squares += centred * centred;
        }
        const float factor = 1.0f / sqrtf(sum(squares) / n->size + (float)n->epsilon);
        for (int64_t i = 0; i < n->size; i += LANES) {
            const int64_t left = least(n->size - i, LANES);
            lanes value = (load(x + i, left, FLOAT32) - mean) * factor;
            if (n->weight) value *= load(n->weight + i, left, FLOAT32);
            if (n->bias) value += load(n->bias + i, left, FLOAT32);
            store(to + first + i, value, left);
        }
    }
}

/* Turns the pairs of channels (i, i + rotated / 2) of each head. */
static void rotate(float *states, int64_t heads, const layer *l, int64_t position) {
    const int64_t half = l->rotated / 2;
    const float *cosine = l->rotation + position * 2 * l->rotated, *sine = cosine + l->rotated;
    for (int64_t h = 0; h < heads; h++, states += l->head_size)
        for (int64_t i = 0; i < half; i++) {
            const float a = states[i], b = states[i + half];
            states[i] = a * cosine[i] - b * sine[i];
            states[i + half] = b * cosine[i + half] + a * sine[i + half];
        }
}

static void put(void *cache, int64_t place, const float *from, int64_t count, int64_t type) {
    if (type == FLOAT32) {
        memcpy((float *)cache + place, from, 4 * count);
        return;
    }
    for (int64_t i = 0; i < count; i++) { /* rounds to the nearest bf16, ties to even */
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        if (from[i] == from[i]) bits += 0x7FFF + (bits >> 16 & 1);
        else bits |= 1 << 22; /* NaN */
        ((uint16_t *)cache)[place + i] = bits >> 16;
    }
}

/* Probabilities of `count` scores, in place. */
static void softmax(float *scores, int64_t count, const layer *l) {
    float largest = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        float score = scores[i] * (float)l->scale;
        if (l->softcap) score = (float)l->softcap * tanhf(score / (float)l->softcap);
        scores[i] = score;
        if (score > largest) largest = score;
    }
    float total = 0.0f;
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t left = least(count - i, LANES);
        lanes powers = exponential(load(scores + i, left, FLOAT32) - largest);
        for (int64_t j = left; j < LANES; j++) powers[j] = 0.0f;
        total += sum(powers);
        store(scores + i, powers, left);
    }
    for (int64_t i = 0; i < count; i++) scores[i] /= total;
}

/* The mean of `count` values [count, size], weighted by their probabilities. */
INLINE void mix(float *to, const float *weights, const char *values, int64_t count, int64_t size,
                const int type) {
    const int64_t bytes_each = size * size_of(type);
    for (int64_t i = 0; i < size; i += LANES) {
        const int64_t left = least(size - i, LANES);
        const char *from = values + i * size_of(type);
        lanes sums[4] = {0};
        int64_t j = 0;
        for (; count - j >= 4; j += 4)
#pragma GCC unroll 4
            for (int o = 0; o < 4; o++)
                sums[o] += weights[j + o] * load(from + (j + o) * bytes_each, left, type);
        for (; j < count; j++) sums[0] += weights[j] * load(from + j * bytes_each, left, type);
        store(to + i, (sums[0] + sums[1]) + (sums[2] + sums[3]), left);
    }
}

/* ---- the team's operations ---- */

/* Normalises and turns each token's query and key; key and value join the cache. */
static void remember(float *query, float *key, const float *value, const layer *l, const step *s,
                     int64_t index) {
    const int64_t size = l->head_size, type = s->cache_type;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s->texts * s->tokens; row++) {
        const int64_t text = row / s->tokens, column = s->column + row % s->tokens;
        float *q = query + row * l->query.outputs, *k = key + row * l->key.outputs;
        const float *v = value + row * l->value.outputs;
        normalize(q, q, l->query.outputs, &l->query_norm);
        normalize(k, k, l->key.outputs, &l->key_norm);
        if (l->rotation) {
            rotate(q, l->heads, l, column - s->begins[text]);
            rotate(k, l->key_heads, l, column - s->begins[text]);
        }
        for (int64_t head = 0; head < l->key_heads; head++) {
            const int64_t place = ((text * l->key_heads + head) * s->room + column) * size;
            put(s->keys[index], place, k + head * size, size, type);
            put(s->values[index], place, v + head * size, size, type);
        }
    }
}

/* Attention of each new token over the columns of its text, up to its own. */
static void attention(float *mixed, const float *query, float *scores, const layer *l,
                      const step *s, int64_t index) {
    const int64_t size = l->head_size, group = l->heads / l->key_heads, type = s->cache_type;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s->texts * s->tokens * l->key_heads; task++) {
        const int64_t row = task / l->key_heads, text = row / s->tokens;
        const int64_t column = s->column + row % s->tokens;
        int64_t first = s->begins[text];
        if (l->window && column - l->window >= first) first = column - l->window + 1;
        const int64_t place = (text * l->key_heads + task % l->key_heads) * s->room + first;
        const int64_t count = column + 1 - first, offset = place * size * size_of(type);
        const char *keys = (const char *)s->keys[index] + offset;
        const char *values = (const char *)s->values[index] + offset;
        float *seen = scores + task * group * s->room;
        products(seen, s->room, query + task * group * size, 4 * size, group, keys, size, count,
                 type);
        for (int64_t h = 0; h < group; h++) {
            float *to = mixed + (task * group + h) * size, *weights = seen + h * s->room;
            softmax(weights, count, l);
            if (type == FLOAT32) mix(to, weights, values, count, size, FLOAT32);
            else mix(to, weights, values, count, size, BFLOAT16);
        }
    }
}

/* states += f(states), normalised before the sum, and the input of what follows. */
static void add(float *states, float *added, float *next, const step *s, int64_t hidden,
                double multiplier, const norm *after, const norm *before) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s->texts * s->tokens; row++) {
        float *own = states + row * hidden, *f = added + row * hidden;
        normalize(f, f, hidden, after);
        for (int64_t i = 0; i < hidden; i++) own[i] += (float)multiplier * f[i];
        normalize(next + row * hidden, own, hidden, before);
    }
}

INLINE void activate_as(float *inner, const float *gate, int64_t from, int64_t to, const int kind) {
    for (int64_t i = from; i < to; i += LANES) {
        const int64_t left = least(to - i, LANES);
        lanes value = load(inner + i, left, FLOAT32);
        if (gate) value *= activated(load(gate + i, left, FLOAT32), kind);
        else value = activated(value, kind);
        store(inner + i, value, left);
    }
}

static void activate(float *inner, const float *gate, int64_t count, int64_t kind) {
    const int64_t wide = 1024;
#pragma omp for schedule(static)
    for (int64_t from = 0; from < count; from += wide) {
        const int64_t to = least(count, from + wide);
        if (kind == SILU) activate_as(inner, gate, from, to, SILU);
        else if (kind == GELU_TANH) activate_as(inner, gate, from, to, GELU_TANH);
        else if (kind == GELU) activate_as(inner, gate, from, to, GELU);
        else activate_as(inner, gate, from, to, RELU);
    }
}

/* Number of floats of the workspace of a step of `rows` tokens. */
int64_t workspace_size(const model *m, int64_t rows, int64_t room, int64_t threads) {
    int64_t most = 0;
    for (int64_t i = 0; i < m->n_layers; i++) {
        const layer *l = m->layers + i;
        const int64_t wide = 2 * l->query.outputs + 2 * l->key.outputs + l->heads * room;
        const int64_t needed = wide + 2 * l->up.outputs;
        if (needed > most) most = needed;
    }
    return rows * (2 * m->hidden_size + most) + threads * packing_size(m, rows) / 4;
}

/* Computes the logits after each new token, and appends keys and values to the cache. */
void decode(const model *m, const step *s) {
    const int64_t rows = s->texts * s->tokens, hidden = m->hidden_size;
#pragma omp parallel num_threads(s->threads)
    {
        const int64_t packed = packing_size(m, rows);
        char *packing = (char *)s->workspace + omp_get_thread_num() * packed;
        float *next = s->workspace + s->threads * packed / 4;
        float *added = next + rows * hidden, *free = added + rows * hidden;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            normalize(next + row * hidden, s->states + row * hidden, hidden,
                      &m->layers->before_attention);
        for (int64_t i = 0; i < m->n_layers; i++) {
            const layer *l = m->layers + i;
            const norm *following =
                i + 1 < m->n_layers ? &m->layers[i + 1].before_attention : &m->last_norm;
            float *query = free, *mixed = query + rows * l->query.outputs;
            float *key = mixed + rows * l->query.outputs, *value = key + rows * l->key.outputs;
            float *scores = value + rows * l->value.outputs;
            float *inner = scores + rows * l->heads * s->room, *gate = inner + rows * l->up.outputs;
            linear(query, next, rows, hidden, &l->query, packing);
            linear(key, next, rows, hidden, &l->key, packing);
            linear(value, next, rows, hidden, &l->value, packing);
#pragma omp barrier
            remember(query, key, value, l, s, i);
            attention(mixed, query, scores, l, s, i);
            linear(added, mixed, rows, l->query.outputs, &l->output, packing);
#pragma omp barrier
            add(s->states, added, next, s, hidden, l->residual_multiplier, &l->after_attention,
                &l->before_mlp);
            linear(inner, next, rows, hidden, &l->up, packing);
            if (l->gate.weight) linear(gate, next, rows, hidden, &l->gate, packing);
#pragma omp barrier
            activate(inner, l->gate.weight ? gate : NULL, rows * l->up.outputs, l->activation);
            linear(added, inner, rows, l->up.outputs, &l->down, packing);
#pragma omp barrier
            add(s->states, added, next, s, hidden, l->residual_multiplier, &l->after_mlp, following);
        }
        linear(s->logits, next, rows, hidden, &m->head, packing);
    }
}
