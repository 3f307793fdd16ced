-- Read the pauses of a server.
-- KEYS[1]  hash: as in limit_pause.lua
-- Reply: identity and microseconds that are left, of each that is paused.
local reply, kept = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #kept, 2 do
  local left = string.sub(kept[i], 1, 1) == '=' and math.ceil(kept[i + 1] - now) or 0
  if left > 0 then
    reply[#reply + 1] = string.sub(kept[i], 2)
    reply[#reply + 1] = left
  end
end
return reply
