/* The structures of the driver's interface that stub_driver.c reads, laid out as in cuda.h. */
#pragma once

enum { CLUSTER_DIMENSION = 4 }; /* an attribute of a launch */

typedef struct {
    int id;
    char pad[4];
    union {
        char pad[64];
        struct {
            unsigned x, y, z;
        } cluster;
        int flag;
    } value;
} Attribute;

typedef struct {
    unsigned grid[3], block[3], shared;
    struct Stream *stream;
    Attribute *attributes;
    unsigned count;
} LaunchConfig;

typedef struct {
    int type, id;
} Location;

typedef struct {
    int type, handles;
    Location location;
    void *security;
    unsigned long most;
    unsigned short usage;
    unsigned char reserved[54];
} PoolProperties;

typedef struct {
    int result;
    void *node, *from;
} UpdateResult;
