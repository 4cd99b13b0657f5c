/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/qmp_rate.h"

#include <stdio.h>
#include <string.h>

#define KEY_BYTES 128

/* A while that has begun. */
struct rate {
    struct list_link link;
    struct loop_timer timer;
    struct qmp_rates *rates;
    const struct qmp_event_type *type;
    char key[KEY_BYTES];
    char *text; /* the last event that was held back; NULL: none */
    size_t length_bytes;
};

void qmp_rates_init(struct qmp_rates *rates)
{
    list_init(&rates->rates);
    rates->count = 0;
}

static const char *key_of(const struct qmp_event_type *type, struct json_object *data)
{
    struct json_object *value = NULL;

    if (type->key == NULL || !json_object_object_get_ex(data, type->key, &value) ||
        !json_object_is_type(value, json_type_string))
        return "";
    return json_object_get_string(value);
}

static struct rate *find(struct qmp_rates *rates, const struct qmp_event_type *type,
                         const char *key)
{
    LIST_FOR_EACH(rate, &rates->rates, struct rate, link) {
        if (rate->type == type && strncmp(rate->key, key, sizeof(rate->key) - 1) == 0)
            return rate;
    }
    return NULL;
}

static void rate_arm(struct rate *rate)
{
    struct loop *loop = rate->rates->loop;

    loop_timer_arm(loop, &rate->timer, loop_now_ns(loop) + rate->type->interval_ns);
}

static void rate_send(struct rate *rate)
{
    struct qmp_rates *rates = rate->rates;

    rates->send(rates->arg, rate->text, rate->length_bytes);
    free(TAKE_PTR(rate->text));
}

static void rate_free(struct rate *rate)
{
    loop_timer_cancel(&rate->timer);
    list_remove(&rate->link);
    rate->rates->count--;
    free(rate->text);
    free(rate);
}

/* The end of a while: with something to send another one begins. */
static void rate_fire(struct loop_timer *timer)
{
    struct rate *rate = CONTAINER_OF(timer, struct rate, timer);

    if (rate->text == NULL) {
        rate_free(rate);
        return;
    }
    rate_send(rate);
    rate_arm(rate);
}

/* The first of its kind: what follows is held back. Without memory for that, it is not. */
static void rate_begin(struct qmp_rates *rates, const struct qmp_event_type *type, const char *key)
{
    struct rate *rate = rates->count < QMP_MAX_RATES ? calloc(1, sizeof(*rate)) : NULL;

    if (rate == NULL)
        return;
    rate->rates = rates;
    rate->type = type;
    rate->timer.fire = rate_fire;
    snprintf(rate->key, sizeof(rate->key), "%s", key);
    list_push_back(&rates->rates, &rate->link);
    rates->count++;
    rate_arm(rate);
}

void qmp_rates_offer(struct qmp_rates *rates, const struct qmp_event_type *type,
                     struct json_object *data, char *text, size_t length_bytes)
{
    const char *key = key_of(type, data);
    struct rate *rate = find(rates, type, key);

    if (rate != NULL) {
        free(rate->text);
        rate->text = text;
        rate->length_bytes = length_bytes;
        return;
    }
    rates->send(rates->arg, text, length_bytes);
    free(text);
    rate_begin(rates, type, key);
}

void qmp_rates_flush(struct qmp_rates *rates)
{
    while (!list_empty(&rates->rates)) {
        struct rate *rate = LIST_ENTRY(list_first(&rates->rates), struct rate, link);

        if (rate->text != NULL)
            rate_send(rate);
        rate_free(rate);
    }
}
