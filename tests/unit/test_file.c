/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files, on each way to the kernel and in the simulator. */
#include "harness.h"

#include <errno.h>
#include <string.h>

#define MODEL_BYTES (512u * 1024)

static struct file *open_file(const char *name, unsigned flags, enum file_aio aio) MAY_WAIT;
static struct file *open_file(const char *name, unsigned flags, enum file_aio aio)
{
    struct file *file = NULL;
    struct err err = ERR_INIT;

    if (file_open(loop_current(), test_path(name), flags, aio, &file, &err) < 0)
        fail_msg("%s", err.text);
    return file;
}

static int open_error(const char *path, unsigned flags, struct err *err) MAY_WAIT;
static int open_error(const char *path, unsigned flags, struct err *err)
{
    struct file *file = NULL;
    int result = file_open(loop_current(), path, flags, FILE_AIO_AUTO, &file, err);

    assert_true(result < 0);
    assert_null(file);
    assert_non_null(strstr(err->text, path));
    return result;
}

static void remove_file(struct file *file, const char *name) MAY_WAIT;
static void remove_file(struct file *file, const char *name)
{
    file_close(file);
    assert_int_equal(path_unlink(loop_current(), test_path(name)), 0);
    test_folder_remove();
}

/* --- a model of one file --- */

struct model {
    struct file *file;
    uint64_t random;
    uint64_t length;
    uint8_t *bytes;  /* MODEL_BYTES; behind the length zeroes */
    uint8_t *buffer; /* MODEL_BYTES */
};

static void model_pick(struct model *model, uint64_t limit, uint64_t *ret_offset,
                       uint64_t *ret_length)
{
    uint64_t most = test_random(&model->random) % 2 == 0 ? 70000 : 9000;
    uint64_t offset = test_random(&model->random) % limit;
    uint64_t length = 1 + test_random(&model->random) % most;

    if (test_random(&model->random) % 3 == 0) {
        offset = align_down(offset, 4096);
        length = align_up(length, 4096);
    }
    *ret_offset = offset;
    *ret_length = MIN(length, limit - offset);
}

static void model_write(struct model *model) MAY_WAIT;
static void model_write(struct model *model)
{
    struct iovec iov[3];
    uint64_t offset, length;

    model_pick(model, MODEL_BYTES, &offset, &length);
    for (uint64_t i = 0; i < length; i++)
        model->bytes[offset + i] = (uint8_t)test_random(&model->random);
    memcpy(model->buffer, model->bytes + offset, length);
    uint64_t cut = length / 3;
    iov[0] = (struct iovec){model->buffer, cut};
    iov[1] = (struct iovec){model->buffer + cut, cut};
    iov[2] = (struct iovec){model->buffer + 2 * cut, length - 2 * cut};
    if (test_random(&model->random) % 2 == 0)
        assert_int_equal(file_write(model->file, model->buffer, length, offset), 0);
    else
        assert_int_equal(file_writev(model->file, iov, 3, offset), 0);
    model->length = MAX(model->length, offset + length);
}

static void model_read(struct model *model) MAY_WAIT;
static void model_read(struct model *model)
{
    uint64_t offset, length;

    model_pick(model, MODEL_BYTES, &offset, &length);
    memset(model->buffer, 0xa5, length);
    ssize_t got = file_read(model->file, model->buffer, length, offset);
    uint64_t expected = offset >= model->length ? 0 : MIN(length, model->length - offset);
    assert_int_equal(got, expected);
    assert_memory_equal(model->buffer, model->bytes + offset, expected);
}

static void model_zero(struct model *model) MAY_WAIT;
static void model_zero(struct model *model)
{
    uint64_t offset, length;
    bool punch = test_random(&model->random) % 2 == 0;

    model_pick(model, MODEL_BYTES, &offset, &length);
    int result = punch
                     ? file_punch(model->file, offset, length)
                     : file_zero(model->file, offset, length, test_random(&model->random) % 2 == 0);
    if (result == -EOPNOTSUPP)
        return; /* the file system under the test cannot */
    assert_int_equal(result, 0);
    memset(model->bytes + offset, 0, length); /* the length stays */
}

static void model_truncate(struct model *model) MAY_WAIT;
static void model_truncate(struct model *model)
{
    uint64_t length = test_random(&model->random) % MODEL_BYTES;

    assert_int_equal(file_truncate(model->file, length), 0);
    assert_int_equal(file_info(model->file)->length_bytes, length);
    if (length < model->length)
        memset(model->bytes + length, 0, model->length - length);
    model->length = length;
}

/* What an extent calls a hole must be zeroes; stretches are never empty. */
static void model_walk(struct model *model) MAY_WAIT;
static void model_walk(struct model *model)
{
    uint64_t offset = 0;

    while (offset < MODEL_BYTES) {
        uint64_t length = 0;
        bool data = false;
        assert_int_equal(file_extent(model->file, offset, MODEL_BYTES - offset, &data, &length), 0);
        assert_in_range(length, 1, MODEL_BYTES - offset);
        if (!data)
            assert_true(bytes_are_zero(model->bytes + offset, length));
        offset += length;
    }
}

static void run_model(enum file_aio aio) MAY_WAIT;
static void run_model(enum file_aio aio)
{
    struct model model = {
        .random = test_seed("model"),
        .bytes = calloc(1, MODEL_BYTES),
        .buffer = malloc(MODEL_BYTES),
        .file = open_file("model", FILE_WRITABLE | FILE_CREATE, aio),
    };

    assert_non_null(model.bytes);
    assert_non_null(model.buffer);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t dice = test_random(&model.random) % 20;
        if (dice < 8)
            model_write(&model);
        else if (dice < 14)
            model_read(&model);
        else if (dice < 17)
            model_zero(&model);
        else if (dice < 18)
            model_truncate(&model);
        else if (dice < 19)
            assert_int_equal(file_sync(model.file), 0);
        else
            model_walk(&model);
    }
    remove_file(model.file, "model");
    free(model.bytes);
    free(model.buffer);
}

TEST_LOOP(a_file_holds_what_was_written_and_zeroed)
{
    run_model(FILE_AIO_AUTO);
}

TEST_LOOP(a_file_on_the_ring_holds_what_was_written_and_zeroed)
{
    run_model(FILE_AIO_URING);
}

TEST_LOOP(a_file_with_plain_calls_holds_what_was_written_and_zeroed)
{
    run_model(FILE_AIO_INLINE);
}

TEST_LOOP(a_file_on_threads_holds_what_was_written_and_zeroed)
{
    run_model(FILE_AIO_THREADS);
}

/* --- many at once --- */

#define WRITERS      32u
#define WRITER_BYTES (64u * 1024)

struct writer {
    struct file *file;
    struct co_group *group;
    unsigned number;
};

static void write_and_read(void *arg) MAY_WAIT;
static void write_and_read(void *arg)
{
    struct writer *writer = arg;
    uint64_t begin = (uint64_t)writer->number * WRITER_BYTES;
    uint8_t *bytes = malloc(WRITER_BYTES), *back = malloc(WRITER_BYTES);

    assert_non_null(bytes);
    assert_non_null(back);
    for (unsigned round = 1; round <= 4; round++) {
        memset(bytes, (int)(writer->number * 4 + round), WRITER_BYTES);
        assert_int_equal(file_write(writer->file, bytes, WRITER_BYTES, begin), 0);
        memset(bytes, 0, WRITER_BYTES); /* the call has returned: it is ours again */
        assert_int_equal(file_read(writer->file, back, WRITER_BYTES, begin), WRITER_BYTES);
        for (unsigned i = 0; i < WRITER_BYTES; i++)
            assert_int_equal(back[i], (writer->number * 4 + round) & 0xff);
    }
    free(bytes);
    free(back);
    co_group_leave(writer->group);
}

TEST_LOOP(requests_in_flight_together_do_not_disturb_each_other)
{
    struct file *file = open_file("many", FILE_WRITABLE | FILE_CREATE, FILE_AIO_URING);
    struct writer writers[WRITERS];
    struct co_group group;

    co_group_init(&group);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){file, &group, i};
        co_group_enter(&group);
        assert_int_equal(co_spawn(loop_current(), "writer", write_and_read, &writers[i]), 0);
    }
    assert_int_equal(co_group_wait(&group), 0);
    remove_file(file, "many");
}

/* --- opening --- */

TEST_LOOP(an_error_of_open_names_the_path)
{
    struct err err = ERR_INIT;

    assert_int_equal(open_error(test_path("absent"), 0, &err), -ENOENT);
    assert_int_equal(open_error(test_path("no/folder"), FILE_CREATE | FILE_WRITABLE, &err),
                     -ENOENT);
    assert_int_equal(open_error(test_folder(), 0, &err), -EISDIR);
    struct file *file = open_file("there", FILE_WRITABLE | FILE_CREATE | FILE_EXCLUSIVE,
                                  FILE_AIO_AUTO);
    assert_int_equal(
        open_error(test_path("there"), FILE_WRITABLE | FILE_CREATE | FILE_EXCLUSIVE, &err),
        -EEXIST);
    assert_int_equal(open_error(test_path("there/below"), FILE_WRITABLE, &err), -ENOTDIR);
    remove_file(file, "there");
}

TEST_LOOP(a_file_opened_for_reading_takes_no_writes)
{
    struct file *file = open_file("plain", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    struct file *reader = open_file("plain", 0, FILE_AIO_AUTO);
    char byte = 'x';

    assert_int_equal(file_write(file, &byte, 1, 99), 0);
    assert_int_equal(file_write(reader, &byte, 1, 0), -EBADF);
    assert_true(file_punch(reader, 0, 1) < 0);
    assert_true(file_truncate(reader, 0) < 0);
    assert_int_equal(file_read(reader, &byte, 1, 0), 1);
    assert_int_equal(byte, 0);
    file_close(reader);
    remove_file(file, "plain");
}

TEST_LOOP(opening_tells_the_length_and_can_empty_the_file)
{
    struct file *file = open_file("long", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);

    assert_int_equal(file_info(file)->length_bytes, 0);
    assert_int_equal(file_info(file)->align_bytes, 1);
    assert_false(file_info(file)->block_device);
    assert_int_equal(file_truncate(file, 12345), 0);
    file_close(file);
    file = open_file("long", FILE_WRITABLE, FILE_AIO_AUTO);
    assert_int_equal(file_info(file)->length_bytes, 12345);
    file_close(file);
    file = open_file("long", FILE_WRITABLE | FILE_TRUNCATE, FILE_AIO_AUTO);
    assert_int_equal(file_info(file)->length_bytes, 0);
    remove_file(file, "long");
}

TEST_LOOP(direct_files_take_aligned_requests_and_refuse_others)
{
    struct file *file = NULL;
    struct err err = ERR_INIT;
    int result = file_open(loop_current(), test_path("direct"),
                           FILE_WRITABLE | FILE_CREATE | FILE_DIRECT, FILE_AIO_AUTO, &file, &err);

    if (result == -EINVAL && !test_loop_is_sim())
        return; /* a file system without direct I/O */
    assert_int_equal(result, 0);
    uint32_t align = file_info(file)->align_bytes;
    assert_true(align > 1 && is_power_of_two(align) && align <= BUF_ALIGNMENT);
    struct buf *buf = buf_alloc(loop_bufs(loop_current()), 2 * align);
    assert_non_null(buf);
    memset(buf->bytes, 7, 2 * align);
    assert_int_equal(file_write(file, buf->bytes, align, align), 0);
    if (!file_info(file)->in_memory) { /* those take anything */
        assert_int_equal(file_write(file, buf->bytes, align, align / 2), -EINVAL);
        assert_int_equal(file_write(file, buf->bytes, align / 2, 0), -EINVAL);
    }
    assert_int_equal(file_read(file, buf->bytes, 2 * align, 0), 2 * align);
    assert_true(bytes_are_zero(buf->bytes, align));
    assert_int_equal(buf->bytes[align], 7);
    buf_unref(buf);
    remove_file(file, "direct");
}

TEST_LOOP(a_punched_range_is_a_hole_and_written_data_is_data)
{
    struct file *file = open_file("holes", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    static uint8_t bytes[256 * 1024];
    uint64_t length = 0;
    struct file_stat stat;
    bool data = false;

    memset(bytes, 1, sizeof(bytes));
    assert_int_equal(file_write(file, bytes, sizeof(bytes), 0), 0);
    assert_int_equal(file_truncate(file, 1024 * 1024), 0);
    assert_int_equal(file_stat(file, &stat), 0);
    assert_int_equal(stat.length_bytes, 1024 * 1024);
    assert_true(stat.usage_bytes >= sizeof(bytes) && stat.usage_bytes < 512 * 1024);
    if (file_punch(file, 64 * 1024, 64 * 1024) == 0) {
        uint64_t before_bytes = stat.usage_bytes;

        assert_int_equal(file_stat(file, &stat), 0);
        assert_true(stat.usage_bytes == before_bytes - 64 * 1024);
        assert_int_equal(file_extent(file, 0, 1024 * 1024, &data, &length), 0);
        assert_true(data);
        assert_int_equal(length, 64 * 1024);
        assert_int_equal(file_extent(file, 64 * 1024, 1024 * 1024, &data, &length), 0);
        assert_false(data);
        assert_int_equal(length, 64 * 1024);
        assert_int_equal(file_extent(file, 100 * 1024, 1000, &data, &length), 0);
        assert_false(data);
        assert_int_equal(length, 1000); /* never more than was asked for */
    }
    assert_int_equal(file_extent(file, 512 * 1024, 4096, &data, &length), 0);
    assert_false(data);
    remove_file(file, "holes");
}

/* --- locks --- */

TEST_LOOP(a_lock_keeps_other_opens_out_until_released_or_closed)
{
    struct file *a = open_file("locked", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    struct file *b = open_file("locked", FILE_WRITABLE, FILE_AIO_AUTO);
    bool locked = false;

    assert_int_equal(file_lock(a, 100, false), 0);
    assert_int_equal(file_lock(b, 100, false), 0); /* shared */
    assert_int_equal(file_lock(b, 100, true), -EAGAIN);
    assert_int_equal(file_lock_test(b, 100, true, &locked), 0);
    assert_true(locked);
    assert_int_equal(file_lock_test(b, 100, false, &locked), 0);
    assert_false(locked);
    assert_int_equal(file_lock_test(b, 101, true, &locked), 0);
    assert_false(locked);
    assert_int_equal(file_unlock(a, 100), 0);
    assert_int_equal(file_lock(b, 100, true), 0); /* upgraded */
    assert_int_equal(file_lock(a, 100, false), -EAGAIN);
    assert_int_equal(file_lock(a, 101, true), 0);
    file_close(b);
    assert_int_equal(file_lock(a, 100, true), 0);
    assert_int_equal(file_unlock(a, 55), 0); /* never locked: harmless */
    remove_file(a, "locked");
}

/* --- paths --- */

TEST_LOOP(renaming_replaces_and_the_replaced_file_lives_while_open)
{
    struct loop *loop = loop_current();
    struct file *old = open_file("old", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    struct file *new = open_file("new", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    char byte = 'o';

    assert_int_equal(file_write(old, &byte, 1, 0), 0);
    byte = 'n';
    assert_int_equal(file_write(new, &byte, 1, 0), 0);
    assert_int_equal(path_rename(loop, test_path("new"), test_path("old")), 0);
    assert_int_equal(path_sync_folder(loop, test_folder()), 0);
    assert_false(path_exists(loop, test_path("new")));
    assert_true(path_exists(loop, test_path("old")));
    assert_int_equal(file_read(old, &byte, 1, 0), 1);
    assert_int_equal(byte, 'o');
    struct file *again = open_file("old", 0, FILE_AIO_AUTO);
    assert_int_equal(file_read(again, &byte, 1, 0), 1);
    assert_int_equal(byte, 'n');
    file_close(again);
    file_close(new);
    remove_file(old, "old");
}

TEST_LOOP(two_names_are_exchanged_in_one_step)
{
    struct loop *loop = loop_current();
    struct file *one = open_file("one", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    struct file *other = open_file("other", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    char byte = 0;

    assert_int_equal(file_write(one, "1", 1, 0), 0);
    assert_int_equal(file_write(other, "2", 1, 0), 0);
    file_close(one);
    file_close(other);
    assert_int_equal(path_exchange(loop, test_path("one"), test_path("absent")), -ENOENT);
    assert_int_equal(path_exchange(loop, test_path("one"), test_path("other")), 0);
    one = open_file("one", 0, FILE_AIO_AUTO);
    other = open_file("other", 0, FILE_AIO_AUTO);
    assert_int_equal(file_read(one, &byte, 1, 0), 1);
    assert_int_equal(byte, '2');
    assert_int_equal(file_read(other, &byte, 1, 0), 1);
    assert_int_equal(byte, '1');
    assert_int_equal(path_unlink(loop, test_path("other")), 0);
    file_close(other);
    remove_file(one, "one");
}

TEST_LOOP(paths_that_are_not_there_are_errors)
{
    struct loop *loop = loop_current();

    assert_false(path_exists(loop, test_path("absent")));
    assert_int_equal(path_unlink(loop, test_path("absent")), -ENOENT);
    assert_int_equal(path_rename(loop, test_path("absent"), test_path("other")), -ENOENT);
    assert_int_equal(path_sync_folder(loop, test_path("absent")), -ENOENT);
    test_folder_remove();
}

TEST_LOOP(an_unlinked_file_works_until_it_is_closed)
{
    struct file *file = open_file("gone", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);
    char byte = 'g';

    assert_int_equal(path_unlink(loop_current(), test_path("gone")), 0);
    assert_false(path_exists(loop_current(), test_path("gone")));
    assert_int_equal(file_write(file, &byte, 1, 5), 0);
    byte = 0;
    assert_int_equal(file_read(file, &byte, 1, 5), 1);
    assert_int_equal(byte, 'g');
    file_close(file);
    test_folder_remove();
}

TEST_LOOP(making_a_folder_that_exists_is_fine_and_over_a_file_is_not)
{
    struct loop *loop = loop_current();
    struct file *file = open_file("file", FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO);

    assert_int_equal(path_make_folder(loop, test_folder(), 0700), 0);
    assert_int_equal(path_make_folder(loop, test_path("file"), 0700), -ENOTDIR);
    assert_int_equal(path_make_folder(loop, test_path("file/below"), 0700), -ENOTDIR);
    remove_file(file, "file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_holds_what_was_written_and_zeroed),
        cmocka_unit_test(a_file_on_the_ring_holds_what_was_written_and_zeroed),
        cmocka_unit_test(a_file_with_plain_calls_holds_what_was_written_and_zeroed),
        cmocka_unit_test(a_file_on_threads_holds_what_was_written_and_zeroed),
        cmocka_unit_test(requests_in_flight_together_do_not_disturb_each_other),
        cmocka_unit_test(an_error_of_open_names_the_path),
        cmocka_unit_test(a_file_opened_for_reading_takes_no_writes),
        cmocka_unit_test(opening_tells_the_length_and_can_empty_the_file),
        cmocka_unit_test(direct_files_take_aligned_requests_and_refuse_others),
        cmocka_unit_test(a_punched_range_is_a_hole_and_written_data_is_data),
        cmocka_unit_test(a_lock_keeps_other_opens_out_until_released_or_closed),
        cmocka_unit_test(renaming_replaces_and_the_replaced_file_lives_while_open),
        cmocka_unit_test(two_names_are_exchanged_in_one_step),
        cmocka_unit_test(paths_that_are_not_there_are_errors),
        cmocka_unit_test(an_unlinked_file_works_until_it_is_closed),
        cmocka_unit_test(making_a_folder_that_exists_is_fine_and_over_a_file_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
