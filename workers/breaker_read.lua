-- Read a breaker. Keys and arguments: as in breaker_state.lua.
return snapshot()
