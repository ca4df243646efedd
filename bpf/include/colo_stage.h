/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs that others call. Each is one by itself because the verifier looks at a million instructions
 * per program. sets.py fills the table.
 */
#ifndef COLO_STAGE_H
#define COLO_STAGE_H

#define COLO_STAGE_DRAIN	0
#define COLO_STAGE_ENTER	1
#define COLO_STAGE_PVM		2
#define COLO_STAGE_SVM		3
#define COLO_STAGE_PVM_RST	4
#define COLO_STAGE_SVM_RST	5
#define COLO_STAGE_OWE		6

BPF_PROG_ARRAY(colo_stages, 7);

#endif /* COLO_STAGE_H */
