"""First copies over lines that are far, lossy and slow (links), and from several sites at once (multi).

Both ends and the line itself run on this machine. Needs root, for network namespaces.
"""

import lakes
from lakes import gone
from measuring import say
from networks import Link, Net, limit, permitted

# TCP of most machines is CUBIC, which takes every loss for a full line: it carries 1 % of loss at some 2 Mbit/s, and
# gets less to do. BBR does not. QUIC has a congestion control of its own, CUBIC, on all of them.
LINKS = [
    Link("1 Gbit/s, 20 ms", 1000, 10, 0, 512),
    Link("100 Mbit/s, 80 ms, 1 % lost", 100, 40, 10, 8),
    Link("100 Mbit/s, 80 ms, 1 % lost", 100, 40, 10, 24, "bbr"),
    Link("10 Mbit/s, 20 ms", 10, 10, 0, 8),
]
MULTI_MIB, MULTI_MBIT = 128, 100


def links(bench):
    """Half of what is copied is random, half are lines of CSV."""
    found = []
    for link in LINKS:
        if why := permitted(link.tcp):
            say(f"{link.name} with {link.tcp} is left out: {why}")
            continue
        found.append(over(bench, link))
    return {"links": found}


def over(bench, link):
    mib = max(1, int(link.mib * bench.a.link_scale))
    lake = bench.lake("halves", lakes.halves, mib)
    with Net() as net:
        (near, far), (address, _), line = net.line(bench.a.line, link)
        owner = bench.site("giver", space=near)
        owner.share(lake)
        lanes = {}

        def sluice(name, **settings):
            cost, told = bench.join(lake, owner, space=far, settings=settings)
            lanes[name] = told["bulk"] | {"bytes_moved": told["bytes_moved"]}
            return cost

        def rsync(words):
            return bench.rsync(lake, words, space=near, to=far, address=address)

        runners = {
            "sluice": lambda: sluice("sluice"),
            "sluice, quic only": lambda: sluice("sluice, quic only", SLUICE__P2P__TLS="false"),
            "rsync -aW": lambda: rsync("-aW"),
            "rsync -azW": lambda: rsync("-azW"),
        }
        costs = bench.pairs(f"{link.name}, {link.tcp}", runners)
        owner.kill()
        used = line.cpu()
        return vars(link) | {"bytes": lakes.size_of(lake), "costs": costs, "lanes": lanes, "line": line.end(), "line_cpu": used}


def multi(bench):
    """One space at three sites, each with a slow line of its own to the fourth."""
    lake = bench.lake("mixed", lakes.mixed, max(32, int(MULTI_MIB * bench.a.link_scale)))
    with Net() as net:
        spaces, addresses = net.switched(4)
        # A helper hears by itself that the newcomer was let in.
        follows = {"SLUICE__FOLLOW__ENABLED": "true"}
        holders = [bench.site(name, space=space, settings=follows) for name, space in zip(("giver", "helper-1", "helper-2"), spaces)]
        owner, helpers = holders[0], holders[1:]
        owner.share(lake)
        for helper in helpers:
            gone(bench.work / f"copy-{helper.home.name}")
            helper.join(owner, bench.work / f"copy-{helper.home.name}")
        for space in spaces[:3]:
            limit(space, MULTI_MBIT)
        served = {}

        def copy(name, up):
            for helper in helpers:
                if helper in up and helper.running.has_ended():
                    helper.start()
                elif helper not in up:
                    helper.kill()
            before = [given(site) for site in (owner, *up)]
            cost = bench.join(lake, owner, space=spaces[3], settings=follows)[0]
            served[name] = [given(site) - was for site, was in zip((owner, *up), before)]
            say(f"{name}: bytes that each has served: {served[name]}")
            return cost

        runners = {
            "sluice, from three": lambda: copy("sluice, from three", helpers),
            "sluice, from one": lambda: copy("sluice, from one", []),
            "rsync -aW": lambda: bench.rsync(lake, "-aW", space=spaces[0], to=spaces[3], address=addresses[0]),
        }
        costs = bench.pairs("several sources", runners)
        for site in holders:
            site.kill()
        for helper in helpers:
            bench.same(lake, bench.work / f"copy-{helper.home.name}")
        return {"bytes": lakes.size_of(lake), "mbit": MULTI_MBIT, "costs": costs, "served": served}


def given(site):
    return site.ask("status")["served_bytes_total"]
