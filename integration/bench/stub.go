package main

import "context"

func consumeRocketMQ(ctx context.Context, r *run) error { return nil }
func consumeEmbedded(ctx context.Context, r *run) error { return nil }
func fleet(ctx context.Context, r *run) error           { return nil }
func startProxy(ctx context.Context, r *run) error      { return nil }
