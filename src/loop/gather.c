/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Gathered sending: two batches, one that fills while the other is on its way. */
#include "loop/gather.h"

#include <errno.h>

static void batch_reset(struct gather_batch *batch)
{
    batch->iov_count = batch->iov_done = 0;
    batch->head_bytes = 0;
    batch->bytes = 0;
}

static void batch_add(struct gather_batch *batch, const void *bytes, size_t length_bytes)
{
    struct iovec *last = batch->iov_count > 0 ? &batch->iov[batch->iov_count - 1] : NULL;

    batch->bytes += length_bytes;
    if (last != NULL && (const uint8_t *)last->iov_base + last->iov_len == bytes) {
        last->iov_len += length_bytes;
        return;
    }
    batch->iov[batch->iov_count++] = (struct iovec){(void *)(uintptr_t)bytes, length_bytes};
}

/* Gives the batch's messages back. */
static void batch_return(struct gather *gather, struct gather_batch *batch, int result)
{
    struct list items = LIST_INIT(items);

    if (result == 0)
        gather->sent_bytes += batch->bytes;
    list_splice_back(&items, &batch->items);
    batch_reset(batch);
    gather->sent(gather, &items, result);
    assert(list_empty(&items));
}

/* Steps over bytes that the kernel has taken. */
static void batch_advance(struct gather_batch *batch, size_t bytes)
{
    while (bytes > 0) {
        struct iovec *iov = &batch->iov[batch->iov_done];
        size_t step = MIN(bytes, iov->iov_len);

        iov->iov_base = (uint8_t *)iov->iov_base + step;
        iov->iov_len -= step;
        bytes -= step;
        if (iov->iov_len == 0)
            batch->iov_done++;
    }
}

static void gather_run(void *arg) MAY_WAIT
{
    struct gather *gather = arg;
    struct gather_batch *batch = &gather->batches[!gather->filling];

    while (batch->iov_count > 0) {
        gather->busy_since_ns = loop_now_ns(gather->loop);
        gather->busy_bytes = batch->bytes;
        int result = sock_send(gather->sock, batch->iov + batch->iov_done,
                               (int)(batch->iov_count - batch->iov_done));
        batch_return(gather, batch, result);
        batch = &gather->batches[gather->filling];
        gather->filling = !gather->filling;
    }
    gather->busy_since_ns = 0;
    gather->sending = false;
}

void gather_push(struct gather *gather)
{
    struct gather_batch *batch = &gather->batches[gather->filling];

    loop_defer_cancel(gather->loop, &gather->task);
    if (gather->sending || batch->iov_count == 0)
        return;
    ssize_t taken = sock_send_now(gather->sock, batch->iov, (int)batch->iov_count);
    if (taken < 0 || (size_t)taken == batch->bytes) {
        batch_return(gather, batch, taken < 0 ? (int)taken : 0);
        return;
    }
    batch_advance(batch, (size_t)taken);
    gather->sending = true;
    gather->filling = !gather->filling;
    if (co_spawn(gather->loop, "gather", gather_run, gather) == 0)
        return;
    gather->sending = false;
    sock_shutdown(gather->sock, -ENOMEM);
    batch_return(gather, batch, -ENOMEM);
}

static void gather_task_run(struct loop_task *task)
{
    gather_push(CONTAINER_OF(task, struct gather, task));
}

int gather_init(struct gather *gather, struct loop *loop, struct sock *sock, unsigned max_messages,
                void (*sent)(struct gather *gather, struct list *items, int result))
{
    *gather = (struct gather){
        .sock = sock, .loop = loop, .sent = sent, .task = {.run = gather_task_run}};
    for (int i = 0; i < 2; i++) {
        struct gather_batch *batch = &gather->batches[i];

        list_init(&batch->items);
        /* Between two stretches of data there is at most one stretch of heads. */
        batch->iov = calloc((size_t)max_messages * GATHER_PARTS * 2, sizeof(batch->iov[0]));
        batch->heads = malloc((size_t)max_messages * GATHER_HEAD_BYTES);
        if (batch->iov == NULL || batch->heads == NULL) {
            gather_release(gather);
            return -ENOMEM;
        }
    }
    return 0;
}

void gather_release(struct gather *gather)
{
    assert(!gather->sending);
    if (gather->loop != NULL)
        loop_defer_cancel(gather->loop, &gather->task);
    for (int i = 0; i < 2; i++) {
        assert(gather->batches[i].iov_count == 0);
        free(gather->batches[i].iov);
        free(gather->batches[i].heads);
    }
}

uint8_t *gather_head(struct gather *gather, size_t length_bytes)
{
    struct gather_batch *batch = &gather->batches[gather->filling];
    uint8_t *head = batch->heads + batch->head_bytes;

    batch->head_bytes += length_bytes;
    batch_add(batch, head, length_bytes);
    return head;
}

void gather_data(struct gather *gather, const void *bytes, size_t length_bytes)
{
    if (length_bytes > 0)
        batch_add(&gather->batches[gather->filling], bytes, length_bytes);
}

void gather_end(struct gather *gather, struct list_link *link)
{
    list_push_back(&gather->batches[gather->filling].items, link);
    loop_defer(gather->loop, &gather->task);
}
