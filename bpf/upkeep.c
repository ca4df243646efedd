// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the control plane runs, and no packet: the beat of the plane, its farewell, and the sweep of
 * the flow table.
 *
 *   colo_beacon, colo_farewell ══▶ link
 *   colo_age                       entries of the flow table that have ended
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/pkt_cls.h>

#include "colo_abi.h"
#include "colo_count.h"
#include "colo_link.h"
#include "colo_maps.h"
#include "colo_table.h"

#define COLO_AGE_MAX	256	/* places one run of colo_age looks at */

/*
 * The plane's first beat, or the first after it stopped. BPF_PROG_TEST_RUN takes no more than a
 * page, and the link may have to carry more. So the input says, behind the MAC header, how large
 * the beacon has to be, and it grows to that.
 */
int colo_beacon(struct __sk_buff *skb)
{
	__u32 bytes = 0;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &bytes, sizeof(bytes)) ||
	    bpf_skb_change_tail(skb, bytes, 0))
		return colo_finish(skb, COLO_PROG_BEACON, COLO_V_DROP, COLO_R_TOO_BIG);
	return colo_beat(skb, colo_conf_get(), colo_epoch_get());
}

/*
 * Tell the other plane that this one leaves the pairing. The configuration does not name the
 * pairing any more then, so that nothing can be sent after this. The input has pairing and address
 * behind the MAC header.
 */
int colo_farewell(struct __sk_buff *skb)
{
	struct colo_config *conf = colo_conf_get();
	__u32 to[5] = {};

	if (!conf || bpf_skb_load_bytes(skb, 14, to, sizeof(to)))
		return colo_finish(skb, COLO_PROG_FAREWELL, COLO_V_DROP, COLO_R_NO_CONF);
	if (colo_link_to(skb, conf, to[0], &to[1], 0) ||
	    bpf_clone_redirect(skb, conf->link_ifindex, 0))
		return colo_finish(skb, COLO_PROG_FAREWELL, COLO_V_DROP, COLO_R_CLONE_FAILED);
	colo_count(COLO_PROG_FAREWELL, COLO_V_LINK, COLO_R_FAREWELL, skb->len);
	return TC_ACT_SHOT;
}

/*
 * Remove entries of the flow table whose connection has ended. The input's first four bytes are the
 * place to start at. Returns 0.
 */
int colo_age(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 start = 0;
	int i;

	if (bpf_skb_load_bytes(skb, 0, &start, 4))
		return colo_run_over(skb, COLO_PROG_AGE, COLO_R_MALFORMED, 0);
	for (i = 0; i < COLO_AGE_MAX; i++)
		colo_place_look((start + i) % COLO_PLACES, now);
	return colo_run_over(skb, COLO_PROG_AGE, COLO_R_RUN, 0);
}
