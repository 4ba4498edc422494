/* The Python module: a table of images is decoded or checked in one call, outside of Python's lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "_decode.h"

static int check_job(const Job *job) {
    long long bottom = (long long)job->top + job->crop_height, right = (long long)job->left + job->crop_width;
    int inside = job->top >= 0 && job->left >= 0 && job->crop_height > 0 && job->crop_width > 0 &&
                 bottom <= job->height && right <= job->width;
    int whole = job->address && job->size &&
                (job->mode == JPEG ||
                 (job->mode == RAW && job->size == 3 * (uint64_t)(uint32_t)job->height * (uint64_t)(uint32_t)job->width));
    if (!inside)
        PyErr_Format(PyExc_ValueError, "rectangle %d:%lld, %d:%lld in an image of %d by %d pixels", job->top, bottom, job->left,
                     right, job->height, job->width);
    else if (!whole)
        PyErr_SetString(PyExc_ValueError, "an image has no bytes, is of unknown kind, or has another size than its pixels");
    return inside && whole;
}

/* The number of jobs in a buffer; -1, with an exception, if they are none. */
static int count_jobs(const Py_buffer *jobs) {
    Py_ssize_t count = jobs->len / (Py_ssize_t)sizeof(Job);
    if (jobs->len != count * (Py_ssize_t)sizeof(Job) || count > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "these are no jobs");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!check_job((const Job *)jobs->buf + i)) return -1;
    return (int)count;
}

static PyObject *to_list(const Problem *problems, int count) {
    PyObject *result = PyList_New(count);
    for (int i = 0; result && i < count; i++) {
        PyObject *problem = Py_BuildValue("(iis)", problems[i].row, problems[i].kind, problems[i].message);
        if (!problem) Py_CLEAR(result);
        else PyList_SET_ITEM(result, i, problem);
    }
    return result;
}

static PyObject *python_fill(PyObject *self, PyObject *arguments) {
    (void)self;
    Py_buffer jobs, out;
    int height, width, reduce;
    if (!PyArg_ParseTuple(arguments, "y*w*iip", &jobs, &out, &height, &width, &reduce)) return NULL;
    PyObject *result = NULL;
    Problem *problems = NULL;
    int count = count_jobs(&jobs);
    if (count < 0) goto end;
    if (height <= 0 || width <= 0 || out.len / ((Py_ssize_t)3 * height) != (Py_ssize_t)count * width ||
        out.len % ((Py_ssize_t)3 * height)) {
        PyErr_SetString(PyExc_ValueError, "the output does not fit the jobs");
        goto end;
    }
    problems = malloc(((size_t)count + 1) * sizeof(Problem));
    if (!problems) {
        PyErr_NoMemory();
        goto end;
    }
    int found;
    Py_BEGIN_ALLOW_THREADS
    found = decode_images(jobs.buf, count, out.buf, height, width, reduce, problems);
    Py_END_ALLOW_THREADS
    result = found < 0 ? PyErr_NoMemory() : to_list(problems, found);
end:
    free(problems);
    PyBuffer_Release(&jobs);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *python_check(PyObject *self, PyObject *arguments) {
    (void)self;
    Py_buffer jobs;
    if (!PyArg_ParseTuple(arguments, "y*", &jobs)) return NULL;
    PyObject *result = NULL;
    int count = count_jobs(&jobs), found = -1;
    Problem *problems = count < 0 ? NULL : malloc(((size_t)count + 1) * sizeof(Problem));
    if (problems) {
        Py_BEGIN_ALLOW_THREADS
        found = check_images(jobs.buf, count, problems);
        Py_END_ALLOW_THREADS
    }
    if (found >= 0) result = to_list(problems, found);
    else if (count >= 0) PyErr_NoMemory();
    free(problems);
    PyBuffer_Release(&jobs);
    return result;
}

static PyMethodDef methods[] = {
    {"fill", python_fill, METH_VARARGS,
     "fill(jobs, out, height, width, reduce) -> [(row, kind, message)]: see data_prep.codec.decode.decode_batch."},
    {"check", python_check, METH_VARARGS, "check(jobs) -> [(row, kind, message)]: see data_prep.codec.decode.check."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_pixels", NULL, -1, methods, NULL, NULL, NULL, NULL};

#define FIELD(name) {#name, offsetof(Job, name), sizeof(((Job *)0)->name)}
static const struct {
    const char *name;
    size_t offset, size;
} job_fields[] = {
    FIELD(address), FIELD(size), FIELD(mode), FIELD(height), FIELD(width), FIELD(top), FIELD(left),
    FIELD(crop_height), FIELD(crop_width), FIELD(mirrored),
};

/* ((name, offset, size), ...) of Job's fields, in bytes. */
static PyObject *job_layout(void) {
    const Py_ssize_t count = sizeof job_fields / sizeof *job_fields;
    PyObject *layout = PyTuple_New(count);
    for (Py_ssize_t i = 0; layout && i < count; i++) {
        PyObject *field = Py_BuildValue("(snn)", job_fields[i].name, (Py_ssize_t)job_fields[i].offset,
                                        (Py_ssize_t)job_fields[i].size);
        if (!field) Py_CLEAR(layout);
        else PyTuple_SET_ITEM(layout, i, field);
    }
    return layout;
}

PyMODINIT_FUNC PyInit__pixels(void) {
    PyObject *self = PyModule_Create(&module), *layout = self ? job_layout() : NULL;
    if (!layout || PyModule_AddObjectRef(self, "JOB_LAYOUT", layout) < 0 ||
        PyModule_AddIntConstant(self, "JOB_SIZE", (long)sizeof(Job)) < 0)
        Py_CLEAR(self);
    Py_XDECREF(layout);
    return self;
}
