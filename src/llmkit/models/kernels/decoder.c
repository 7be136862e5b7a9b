/* One decoding step of a language model: a token for each row of a batch.

   `native.py` compiles it and mirrors its structs; `decoding.py` calls it.
   Weights and cached keys and values are read in their stored type; all sums are fp32. A row's
   result does not depend on the other rows: each of its sums has the same order in any batch. */

#include "vectors.h"

#define ROWS 4 /* rows and outputs of a block of products: their sums fit in the registers */
#define OUTPUTS 4

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
    float *states;         /* [rows, hidden size]: the embeddings; overwritten */
    float *logits;         /* [rows, vocabulary] */
    float *workspace;      /* of `workspace_size` */
    const int64_t *begins; /* [rows]: first column that each row sees */
    void *const *keys, *const *values; /* of each layer: [rows, key heads, room, head size] */
    int64_t rows, column, room, cache_type, threads;
} step;

/* ---- products ---- */

/* Adds the products of `count` channels, from k on, to the sums of a block. */
INLINE void multiply(lanes sums[ROWS][OUTPUTS], const float *x, int64_t inputs, const char *weight,
                     int64_t k, int64_t count, const int n_rows, const int n_outputs,
                     const int type) {
    lanes w[OUTPUTS];
#pragma GCC unroll 4
    for (int o = 0; o < n_outputs; o++) {
        const char *from = weight + (o * inputs + k) * size_of(type);
        w[o] = load(from, count, type);
        /* The next block: processors foresee too few of several short streams (up to 1.7 times). */
        __builtin_prefetch(from + n_outputs * inputs * size_of(type));
    }
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++) {
        lanes states = load(x + r * inputs + k, count, FLOAT32);
#pragma GCC unroll 4
        for (int o = 0; o < n_outputs; o++) sums[r][o] += states * w[o];
    }
}

/* The products of `n_rows` rows of x with `n_outputs` rows of the weight. */
INLINE void block(float *y, int64_t stride, const float *x, int64_t inputs, const char *weight,
                  const int n_rows, const int n_outputs, const int type) {
    lanes sums[ROWS][OUTPUTS] = {0};
    int64_t k = 0;
    for (; inputs - k >= LANES; k += LANES)
        multiply(sums, x, inputs, weight, k, LANES, n_rows, n_outputs, type);
    if (k < inputs) multiply(sums, x, inputs, weight, k, inputs - k, n_rows, n_outputs, type);
#pragma GCC unroll 4
    for (int r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (int o = 0; o < n_outputs; o++) y[r * stride + o] = sum(sums[r][o]);
}

INLINE void products_of(float *y, int64_t stride, const float *x, int64_t rows, int64_t inputs,
                        const char *weight, int64_t outputs, const int type) {
    for (int64_t o = 0; o < outputs; o += OUTPUTS, y += OUTPUTS) {
        const char *w = weight + o * inputs * size_of(type);
        int64_t r = 0;
        if (outputs - o < OUTPUTS) {
            for (; r < rows; r++)
                for (int64_t i = 0; i < outputs - o; i++)
                    block(y + r * stride + i, stride, x + r * inputs, inputs,
                          w + i * inputs * size_of(type), 1, 1, type);
            return;
        }
        for (; rows - r >= ROWS; r += ROWS)
            block(y + r * stride, stride, x + r * inputs, inputs, w, ROWS, OUTPUTS, type);
        for (; r < rows; r++)
            block(y + r * stride, stride, x + r * inputs, inputs, w, 1, OUTPUTS, type);
    }
}

/* y [rows, stride], its first `outputs` columns = x [rows, inputs] times weight^T. */
static void products(float *y, int64_t stride, const float *x, int64_t rows, int64_t inputs,
                     const void *weight, int64_t outputs, int64_t type) {
    if (type == FLOAT32) products_of(y, stride, x, rows, inputs, weight, outputs, FLOAT32);
    else if (type == BFLOAT16) products_of(y, stride, x, rows, inputs, weight, outputs, BFLOAT16);
    else products_of(y, stride, x, rows, inputs, weight, outputs, INT8);
}

/* y [rows, outputs] = x [rows, inputs] W^T, scaled, plus bias; the team shares the outputs. */
static void linear(float *y, const float *x, int64_t rows, int64_t inputs, const matrix *m) {
    const int64_t wide = 32, parts = (m->outputs + wide - 1) / wide;
#pragma omp for schedule(static) nowait
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = part * wide, width = least(wide, m->outputs - first);
        const char *weight = (const char *)m->weight + first * inputs * size_of(m->type);
        products(y + first, m->outputs, x, rows, inputs, weight, width, m->type);
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

/* Attention of each row's newest token over its columns; its key and value join the cache. */
static void attention(float *mixed, float *query, float *key, const float *value, float *scores,
                      const layer *l, const step *s, int64_t index) {
    const int64_t size = l->head_size, group = l->heads / l->key_heads, type = s->cache_type;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s->rows * l->key_heads; task++) {
        const int64_t row = task / l->key_heads, begin = s->begins[row];
        float *own = query + task * group * size, *k = key + task * size;
        if (l->rotation) {
            rotate(own, group, l, s->column - begin);
            rotate(k, 1, l, s->column - begin);
        }
        const int64_t place = task * s->room * size, newest = place + s->column * size;
        put(s->keys[index], newest, k, size, type);
        put(s->values[index], newest, value + task * size, size, type);
        int64_t first = begin;
        if (l->window && s->column - l->window >= first) first = s->column - l->window + 1;
        const int64_t count = s->column + 1 - first, offset = (place + first * size) * size_of(type);
        const char *keys = (const char *)s->keys[index] + offset;
        const char *values = (const char *)s->values[index] + offset;
        float *seen = scores + task * group * s->room;
        products(seen, s->room, own, group, size, keys, count, type);
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
    for (int64_t row = 0; row < s->rows; row++) {
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

/* Number of floats of the workspace of a step. */
int64_t workspace_size(const model *m, int64_t rows, int64_t room) {
    int64_t most = 0;
    for (int64_t i = 0; i < m->n_layers; i++) {
        const layer *l = m->layers + i;
        const int64_t wide = 2 * l->query.outputs + 2 * l->key.outputs + l->heads * room;
        const int64_t needed = wide + 2 * l->up.outputs;
        if (needed > most) most = needed;
    }
    return rows * (2 * m->hidden_size + most);
}

/* Computes the logits of each row's next token, and appends its keys and values to the cache. */
void decode(const model *m, const step *s) {
    const int64_t rows = s->rows, hidden = m->hidden_size;
#pragma omp parallel num_threads(s->threads)
    {
        float *next = s->workspace, *added = next + rows * hidden, *free = added + rows * hidden;
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
            linear(query, next, rows, hidden, &l->query);
            linear(key, next, rows, hidden, &l->key);
            linear(value, next, rows, hidden, &l->value);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++) {
                float *q = query + row * l->query.outputs, *k = key + row * l->key.outputs;
                normalize(q, q, l->query.outputs, &l->query_norm);
                normalize(k, k, l->key.outputs, &l->key_norm);
            }
            attention(mixed, query, key, value, scores, l, s, i);
            linear(added, mixed, rows, l->query.outputs, &l->output);
#pragma omp barrier
            add(s->states, added, next, s, hidden, l->residual_multiplier, &l->after_attention,
                &l->before_mlp);
            linear(inner, next, rows, hidden, &l->up);
            if (l->gate.weight) linear(gate, next, rows, hidden, &l->gate);
#pragma omp barrier
            activate(inner, l->gate.weight ? gate : NULL, rows * l->up.outputs, l->activation);
            linear(added, inner, rows, l->up.outputs, &l->down);
#pragma omp barrier
            add(s->states, added, next, s, hidden, l->residual_multiplier, &l->after_mlp, following);
        }
        linear(s->logits, next, rows, hidden, &m->head);
    }
}
