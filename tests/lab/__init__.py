"""What system tests need beyond shadowmesh.netlab: faults, captures, raw frames, NATs, proxies."""
