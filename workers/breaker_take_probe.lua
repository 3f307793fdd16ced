-- Lease the probe of a half-open breaker, unless another lease runs.
-- ARGV[2] token   ARGV[3] lease in milliseconds
if state() == 'half_open' and now >= number('probe_until') then
  redis.call('HSET', KEYS[1], 'probe', ARGV[2], 'probe_until', now + tonumber(ARGV[3]))
  load()
end
return snapshot()
