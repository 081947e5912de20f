-- After a run, print one JSON line with all results that the benchmark reads.
-- There is no request or response hook, because hooks make wrk slower.
function done(summary, latency)
   local pairs_ = {}
   for i = 1, #latency do
      local value, count = latency(i)
      pairs_[i] = string.format("[%d,%d]", value, count)
   end
   local errors = {}
   for _, kind in ipairs({"connect", "read", "write", "status", "timeout"}) do
      errors[#errors + 1] = string.format('"%s":%d', kind, summary.errors[kind])
   end
   print(string.format('{"requests":%d,"duration_us":%d,"errors":{%s},"latency_us":[%s]}',
      summary.requests, summary.duration, table.concat(errors, ","), table.concat(pairs_, ",")))
end
