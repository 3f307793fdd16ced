-- Put one call back into each of several buckets.
-- KEYS  the buckets   ARGV[2k - 1], ARGV[2k] for each its interval in microseconds and its burst
for k = 1, #KEYS do
  local instant = full_at(KEYS[k], 2 * k - 1) - tonumber(ARGV[2 * k - 1])
  if instant > now then keep(KEYS[k], instant) else redis.call('DEL', KEYS[k]) end
end
return redis.status_reply('OK')
