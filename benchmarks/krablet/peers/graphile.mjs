// A graphile-worker process at the settings that were fastest here; ends on SIGTERM. PG* variables say where.
import { run } from "graphile-worker";

const runner = await run({
  preset: {
    worker: {
      concurrentJobs: 24,
      maxPoolSize: 24,
      pollInterval: 200,
      localQueue: { size: 500 },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    },
  },
  noHandleSignals: false,
  taskList: { noop: async () => {} },
});
console.log("ready");
await runner.promise;
