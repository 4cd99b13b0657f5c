/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stream of JSON values: a strict scanner decides where a value ends and whether it is
 * well-formed, then a tree of json-c's objects is built.
 *
 * json-c's own parser accepts more than a control protocol should (comments, NaN, trailing commas,
 * duplicate keys, integers that do not fit). These are refused here. The scanner bounds length,
 * depth and the number of parts before memory is spent. Accepted beyond RFC 8259: strings in single
 * quotes, as QMP has them. Refused though RFC 8259 has it: \u0000, which C strings cannot hold.
 * Values may follow each other back to back; a number or a word at the top is complete when the
 * byte behind it has come. A control byte other than white space, or the byte 0xFF, resets the
 * scanner (QMP's way for a client to resynchronise).
 */
#ifndef BLOCKSTEP_BASE_JSON_H
#define BLOCKSTEP_BASE_JSON_H

#include "base/err.h"

#include <json-c/json.h>

#define JSON_MAX_BYTES  (1u << 20)
#define JSON_MAX_DEPTH  128u
/* Values within a value, itself included: json-c spends up to 800 bytes on two bytes of text. */
#define JSON_MAX_VALUES (32u * 1024)

struct json_reader;

struct json_reader *json_reader_new(void); /* NULL when memory is out */
void json_reader_free(struct json_reader *reader);

/*
 * Consumes bytes until a value is complete or all are taken; *ret_used tells how many. Returns
 *   1  a value: *ret_value holds a reference for the caller (NULL stands for null, as in json-c)
 *   0  all bytes taken, more needed
 *  <0  the value was refused; `err` says why. The reader then skips to a point where a new value
 *      can begin (end of the bad value by bracket counting, a newline at depth zero or in a
 *      string, or a reset byte) and goes on: the next call continues behind it.
 * Memory held never exceeds JSON_MAX_BYTES plus, while it is built, json-c's tree of one value.
 */
int json_reader_feed(struct json_reader *reader, const char *bytes, size_t length_bytes,
                     size_t *ret_used, struct json_object **ret_value, struct err *err);
/* True when a value has begun and is not complete (the stream ended too early). */
bool json_reader_in_value(const struct json_reader *reader);

/* One whole value in `text`, with nothing but white space around it. `where` begins the errors. */
int json_parse(const char *text, size_t length_bytes, const char *where,
               struct json_object **ret_value, struct err *err);

/* The value as text, whole; NULL when memory is out. The caller frees it. JSON_LINE: one line, spaced as QEMU
 * does it ({"a": 1, "b": []}); several managers match on the text. JSON_PRETTY: a line for each item. */
enum json_style { JSON_LINE, JSON_PRETTY };
char *json_format(struct json_object *value, enum json_style style, size_t *ret_length_bytes);

/* For CLEANUP of a struct json_object *. */
void json_putp(struct json_object **value);

/* Builders that keep call sites short. They take ownership of `value`, also on failure; a NULL
 * value or object is an out of memory: they return -ENOMEM. */
int json_add(struct json_object *object, const char *key, struct json_object *value);
int json_add_string(struct json_object *object, const char *key, const char *text);
int json_add_uint(struct json_object *object, const char *key, uint64_t number);
int json_add_int(struct json_object *object, const char *key, int64_t number);
int json_add_bool(struct json_object *object, const char *key, bool truth);

/* Reading what somebody else has written: what is absent or of another type is 0, NULL or false. The
 * texts belong to the object. */
uint64_t json_uint(struct json_object *object, const char *key);
const char *json_text(struct json_object *object, const char *key);
bool json_flag(struct json_object *object, const char *key);
struct json_object *json_member(struct json_object *object, const char *key);

#endif
