// What the device reads at each evaluation; the same layout stands in `step_table.py`.
#pragma once

enum {
    kMostLatents = 5,  // K of the sampler's matrix
    kColumns = kMostLatents + 2,  // the latents, the guided prediction, the noise
    kGuided = kMostLatents,
    kNoise = kMostLatents + 1,
};

struct Cursor {
    int index;         // the evaluation that comes next; the device counts it up
    int count;         // rows of the table; from there on every kernel does nothing
    unsigned arrived;  // blocks of the running guided_step that are done
    int bad;           // the first evaluation after which a latent is not finite, else a huge number
};

struct Step {
    float c_in;
    float guidance;  // scale; not read where the model runs on the condition alone
    float rescale;
    int noise;  // row of the noise table, or -1
    int order;  // K
    int reserved[3];
    double weights[kMostLatents * kColumns];  // row major; latents beyond K, and their columns, are 0
    int padding[2];
};
static_assert(sizeof(Cursor) == 16 && sizeof(Step) == 320, "as in step_table.py");
